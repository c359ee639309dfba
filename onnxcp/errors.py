"""The errors that onnxcp raises on purpose: each message is one sentence a user can act on."""

from __future__ import annotations


class OnnxcpError(Exception):
    """Bad usage or bad input.

    The message names the thing (file, node, option) and the way out. The command line prints it
    without a traceback and exits with 2.
    """


class ModelError(OnnxcpError):
    """A model that cannot be read, is not valid ONNX, or that ONNX Runtime refuses."""


class DataError(OnnxcpError):
    """Data or shapes that do not fit the model's inputs."""


class PassError(OnnxcpError):
    """A pass that failed, or a pipeline text that names or configures one wrongly."""


class ProviderError(OnnxcpError):
    """An execution provider that is not installed or does not start."""


class OutputError(OnnxcpError):
    """A file that cannot be written."""


class PlanError(OnnxcpError):
    """A plan that cannot be read, or that does not fit the model that it is to be applied to."""


class RecordError(OnnxcpError):
    """A record of the main job that cannot be read, or that is none."""
