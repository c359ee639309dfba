"""A small writer of ONNX graphs: random-weight networks without a training framework.

Weights are drawn as in He et al., "Delving Deep into Rectifiers" (2015), eq. 10: with variance
``2 / fan_in`` after a ReLU and ``1 / fan_in`` otherwise, activations keep their scale through the
depth. After a ReLU nine tenths of each filter's mean are taken away besides. Rectified inputs have
a mean in common, which every filter would pass on; after a dozen layers nothing else is left, and
the output hardly depends on the input. (Brock et al., "Characterizing signal propagation to close
the performance gap in unnormalized ResNets" (2021).)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.weightless import weightless

OPSET = 17
IR_VERSION = 8

# A rectified unit normal has second moment 1/2, of which the squared mean is 1/(2π).
CENTRING = 0.9
RELU_GAIN = math.sqrt(2.0)
CENTRED_RELU_GAIN = math.sqrt(2.0 / (1.0 - (1.0 - (1.0 - CENTRING) ** 2) / math.pi))

Dimension = int | str
PerAxis = int | Sequence[int]


class GraphBuilder:
    """An ONNX graph under construction; every layer method returns the name of its output.

    A layer's node and output tensor are both called `name`, its constants ``name.weight``,
    ``name.bias`` and so on. Per-axis arguments (`kernel`, `strides`, ...) are one number for every
    axis or one per axis; the number of spatial axes is that of `kernel`, and 2 where that is one
    number. `pads` are one number, one per axis, or ONNX's begins followed by ends. Weights and
    biases are random unless given; `rectified` says whether `x` comes from a ReLU, for their scale.

    Parameters
    ----------
    name
        The graph's name.
    seed
        Seeds every random weight: equal calls in equal order give equal models.
    """

    def __init__(self, name: str, *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        # Filled in place: the helpers copy whole graphs, for VGG-16 half a gigabyte each time.
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="onnxcp models")
        self._model.opset_import.add(domain="", version=OPSET)
        self._graph = self._model.graph
        self._graph.name = name

    def input(self, name: str, shape: Sequence[Dimension]) -> str:
        """Declare a float32 graph input; a dimension given as text is dynamic."""
        self._graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def initializer(self, name: str, array: np.ndarray) -> str:
        """Add a constant tensor, in the dtype of `array`."""
        self._graph.initializer.add(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            raw_data=array.tobytes(),
        )
        return name

    def node(self, op: str, inputs: Sequence[str], *, name: str, **attributes: Any) -> str:
        """Add any node with one output; attributes that are None are left out."""
        self._graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(
        self,
        x: str,
        channels_in: int,
        channels_out: int,
        kernel: PerAxis,
        *,
        name: str,
        strides: PerAxis = 1,
        pads: PerAxis = 0,
        dilations: PerAxis = 1,
        group: int = 1,
        bias: bool | np.ndarray = True,
        weight: np.ndarray | None = None,
        rectified: bool = True,
    ) -> str:
        """Add a Conv with weight ``(channels_out, channels_in / group, *kernel)``."""
        kernel = _kernel(kernel)
        shape = (channels_out, channels_in // group, *kernel)
        weights = self._weight(
            name,
            shape,
            math.prod(shape[1:]),
            weight,
            rectified=rectified,
            # One filter per channel sees no other channel's mean, and should pass its own.
            centred=group < channels_in,
        )
        inputs = [x, weights, *self._bias(name, channels_out, bias)]
        return self.node(
            "Conv",
            inputs,
            name=name,
            kernel_shape=kernel,
            strides=_per_axis(strides, kernel),
            pads=_pads(pads, kernel),
            dilations=_per_axis(dilations, kernel),
            group=group,
        )

    def conv_transpose(
        self,
        x: str,
        channels_in: int,
        channels_out: int,
        kernel: PerAxis,
        *,
        name: str,
        strides: PerAxis = 1,
        pads: PerAxis = 0,
        output_padding: PerAxis = 0,
        dilations: PerAxis = 1,
        group: int = 1,
        bias: bool | np.ndarray = True,
        weight: np.ndarray | None = None,
        rectified: bool = True,
    ) -> str:
        """Add a ConvTranspose with weight ``(channels_in, channels_out / group, *kernel)``."""
        kernel = _kernel(kernel)
        strides = _per_axis(strides, kernel)
        shape = (channels_in, channels_out // group, *kernel)
        # Only every stride-th tap meets a given output position.
        fan_in = max(1, channels_in // group * math.prod(kernel) // math.prod(strides))
        weights = self._weight(name, shape, fan_in, weight, rectified=rectified, centred=False)
        inputs = [x, weights, *self._bias(name, channels_out, bias)]
        return self.node(
            "ConvTranspose",
            inputs,
            name=name,
            kernel_shape=kernel,
            strides=strides,
            pads=_pads(pads, kernel),
            output_padding=_per_axis(output_padding, kernel),
            dilations=_per_axis(dilations, kernel),
            group=group,
        )

    def gemm(
        self,
        x: str,
        features_in: int,
        features_out: int,
        *,
        name: str,
        bias: bool | np.ndarray = True,
        weight: np.ndarray | None = None,
        rectified: bool = True,
    ) -> str:
        """Add a Gemm with ``transB=1`` and weight ``(features_out, features_in)``."""
        shape = (features_out, features_in)
        weights = self._weight(name, shape, features_in, weight, rectified=rectified, centred=True)
        inputs = [x, weights, *self._bias(name, features_out, bias)]
        return self.node("Gemm", inputs, name=name, transB=1)

    def batch_norm(
        self,
        x: str,
        channels: int,
        *,
        name: str,
        gain: float = 1.0,
        epsilon: float = 1e-5,
        statistics: Sequence[np.ndarray] | None = None,
    ) -> str:
        """Add a BatchNormalization.

        Parameters
        ----------
        x, channels, name, epsilon
            The input, its number of channels, the layer's name, ONNX's `epsilon`.
        gain
            The mean of the random scale; less than 1 tames a residual branch.
        statistics
            Scale, bias, mean and variance, each ``(channels,)``. Random near those of a unit
            normal input by default.
        """
        if statistics is None:
            statistics = (
                gain * self._rng.uniform(0.8, 1.2, channels),
                self._rng.normal(0.0, 0.1, channels),
                self._rng.normal(0.0, 0.1, channels),
                self._rng.uniform(0.75, 1.5, channels),
            )
        constants = [
            self.initializer(f"{name}.{role}", np.asarray(array, np.float32))
            for role, array in zip(("scale", "bias", "mean", "var"), statistics, strict=True)
        ]
        return self.node("BatchNormalization", [x, *constants], name=name, epsilon=epsilon)

    def relu(self, x: str, *, name: str | None = None) -> str:
        """Add a Relu, called ``x.relu`` by default."""
        return self.node("Relu", [x], name=name or f"{x}.relu")

    def clip(self, x: str, low: float, high: float, *, name: str | None = None) -> str:
        """Add a Clip to ``[low, high]``, called ``x.clip`` by default; ReLU6 is ``(0, 6)``."""
        name = name or f"{x}.clip"
        bounds = [
            self.initializer(f"{name}.{role}", np.asarray(value, np.float32))
            for role, value in (("min", low), ("max", high))
        ]
        return self.node("Clip", [x, *bounds], name=name)

    def softmax(self, x: str, *, name: str, axis: int = -1) -> str:
        """Add a Softmax over `axis`."""
        return self.node("Softmax", [x], name=name, axis=axis)

    def max_pool(
        self,
        x: str,
        kernel: PerAxis,
        *,
        name: str,
        strides: PerAxis | None = None,
        pads: PerAxis = 0,
        ceil_mode: bool = False,
    ) -> str:
        """Add a MaxPool; `strides` are the kernel's by default."""
        return self._pool("MaxPool", x, kernel, name, strides, pads, ceil_mode)

    def average_pool(
        self,
        x: str,
        kernel: PerAxis,
        *,
        name: str,
        strides: PerAxis | None = None,
        pads: PerAxis = 0,
        ceil_mode: bool = False,
    ) -> str:
        """Add an AveragePool; `strides` are the kernel's by default."""
        return self._pool("AveragePool", x, kernel, name, strides, pads, ceil_mode)

    def global_average_pool(self, x: str, *, name: str) -> str:
        """Add a GlobalAveragePool."""
        return self.node("GlobalAveragePool", [x], name=name)

    def add(self, a: str, b: str, *, name: str) -> str:
        """Add an elementwise Add."""
        return self.node("Add", [a, b], name=name)

    def concat(self, inputs: Sequence[str], *, name: str, axis: int = 1) -> str:
        """Add a Concat, of channels by default."""
        return self.node("Concat", inputs, name=name, axis=axis)

    def split(self, x: str, parts: int, *, name: str, axis: int = 1) -> list[str]:
        """Cut an axis into equal parts (Split); `parts` must divide it. Returns their names."""
        names = [f"{name}.{part}" for part in range(parts)]
        self._graph.node.append(helper.make_node("Split", [x], names, name=name, axis=axis))
        return names

    def flatten(self, x: str, *, name: str | None = None) -> str:
        """Add a Flatten of all axes but the first, called ``x.flatten`` by default."""
        return self.node("Flatten", [x], name=name or f"{x}.flatten", axis=1)

    def reshape(self, x: str, shape: Sequence[int], *, name: str) -> str:
        """Add a Reshape; 0 keeps an axis and -1 is what remains."""
        target = self.initializer(f"{name}.shape", np.asarray(shape, np.int64))
        return self.node("Reshape", [x, target], name=name)

    def model(self, outputs: Sequence[str], *, doc_string: str = "") -> onnx.ModelProto:
        """Declare the outputs, check the graph, and return it.

        Parameters
        ----------
        outputs
            Names of tensors; their types and shapes are inferred.
        doc_string
            The model's documentation.

        Returns
        -------
        onnx.ModelProto
            Opset 17, IR version 8. It is the builder's own: a builder makes one model.

        Raises
        ------
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError
            The graph is not valid ONNX.
        """
        self._graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        checked = onnx.shape_inference.infer_shapes(
            weightless(self._model), strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(checked)
        del self._graph.output[:]
        self._graph.output.extend(checked.graph.output)
        self._model.doc_string = doc_string
        return self._model

    def _pool(
        self,
        op: str,
        x: str,
        kernel: PerAxis,
        name: str,
        strides: PerAxis | None,
        pads: PerAxis,
        ceil_mode: bool,
    ) -> str:
        kernel = _kernel(kernel)
        return self.node(
            op,
            [x],
            name=name,
            kernel_shape=kernel,
            strides=kernel if strides is None else _per_axis(strides, kernel),
            pads=_pads(pads, kernel),
            ceil_mode=int(ceil_mode),
        )

    def _weight(
        self,
        name: str,
        shape: tuple[int, ...],
        fan_in: int,
        weight: np.ndarray | None,
        *,
        rectified: bool,
        centred: bool,
    ) -> str:
        if weight is None:
            gain = 1.0
            if rectified:
                gain = CENTRED_RELU_GAIN if centred else RELU_GAIN
            # Uniform on ±√3σ: a third of the time of normals, which VGG-16's 138 million feel.
            weight = self._rng.random(shape, dtype=np.float32)
            weight -= np.float32(0.5)
            if rectified and centred:
                weight -= CENTRING * weight.mean(tuple(range(1, weight.ndim)), keepdims=True)
            weight *= np.float32(gain * math.sqrt(12.0 / fan_in))
        elif weight.shape != shape:
            raise ValueError(f"{name}: the weight has shape {weight.shape}, not {shape}")
        return self.initializer(f"{name}.weight", weight.astype(np.float32, copy=False))

    def _bias(self, name: str, channels: int, bias: bool | np.ndarray) -> list[str]:
        if isinstance(bias, bool):
            if not bias:
                return []
            bias = self._rng.normal(0.0, 0.1, channels)
        return [self.initializer(f"{name}.bias", np.asarray(bias, np.float32))]


def _kernel(kernel: PerAxis) -> tuple[int, ...]:
    return (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)


def _per_axis(value: PerAxis, kernel: Sequence[int]) -> tuple[int, ...]:
    return (value,) * len(kernel) if isinstance(value, int) else tuple(value)


def _pads(value: PerAxis, kernel: Sequence[int]) -> tuple[int, ...]:
    pads = _per_axis(value, kernel)
    return pads * 2 if len(pads) == len(kernel) else pads
