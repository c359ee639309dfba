"""Who trains: one process on one device, or several that `accelerate launch` has started."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onnxcp.errors import OnnxcpError


class Team(Protocol):
    """What training needs of those who take part."""

    device: torch.device
    size: int
    rank: int

    def join(
        self, student: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return both ready for training: gradients become means over all processes."""

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""


def several() -> bool:
    """Tell whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Tell whether this process is the one that writes and tells."""
    return int(os.environ.get("RANK", "0")) == 0


def check_device(device: str) -> None:
    """Fail if a device, ``"cpu"``, ``"cuda"`` or ``"auto"``, is not there.

    Raises
    ------
    OnnxcpError
        If it is not.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise OnnxcpError("PyTorch finds no CUDA device; train on the CPU by --device cpu.")


def assemble(device: str) -> Team:
    """Return who trains on a device (see `check_device`).

    Raises
    ------
    OnnxcpError
        If processes are several and accelerate is not installed.
    """
    if several():
        return _Several(device)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return _Alone(torch.device("cuda" if cuda else "cpu"))


class _Alone:
    def __init__(self, device: torch.device) -> None:
        self.device, self.size, self.rank = device, 1, 0

    def join(
        self, student: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        return student, optimizer

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def total(self, value: Tensor) -> Tensor:
        return value


class _Several:
    """Processes of accelerate, each with a copy of the network and a part of every batch."""

    def __init__(self, device: str) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise OnnxcpError(
                "Training in several processes needs the package accelerate, which comes with the"
                " extra 'distributed': pip install \"onnxcp[distributed]\"."
            ) from error
        self._accelerator: Any = Accelerator(cpu=device == "cpu")
        self.device: torch.device = self._accelerator.device
        self.size: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index

    def join(
        self, student: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        joined = self._accelerator.prepare(student, optimizer)
        return joined[0], joined[1]

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def total(self, value: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed
