"""int8 by ONNX Runtime's quantizer, as the last pass.

1. Constants are folded, nodes named, the opset raised to 13 if it is lower.
2. Ranks between factors in a row are scaled so that both quantize well (balanced factors).
3. Samples go through the network for the ranges of its activations.
4. QuantizeLinear and DequantizeLinear are put around what has integer kernels.
5. Biases make up for the means that this has moved.

What the network reads and makes stays float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxcp.errors import PassError
from onnxcp.graph.model import Model
from onnxcp.passes import Context, LowerPass, PassResult
from onnxcp.precision.alone import open_end
from onnxcp.precision.qdq import is_quantized, matches
from onnxcp.precision.ranges import METHODS
from onnxcp.precision.recipe import Recipe, lower, spare, stand_in, tune


@dataclass(frozen=True)
class Quantize(LowerPass):
    """Quantizes a network to int8.

    Attributes
    ----------
    method
        How ranges are found: minmax, percentile or entropy.
    keep
        Names of nodes that stay float: patterns as of a shell, several separated by spaces. Where
        a chain replaced a layer, that of the layer stands for all of it.
    balance
        Whether factors of chains are balanced first.
    correct
        Whether biases are corrected afterwards.
    samples
        How many to calibrate on at most.
    """

    name = "quantize"
    summary = "int8 by ONNX Runtime's quantizer: balanced factors, calibrated ranges, new biases"
    precision = "int8"

    method: str = METHODS[0]
    keep: str = ""
    balance: bool = True
    correct: bool = True
    samples: int = 256

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            known = ", ".join(METHODS)
            raise PassError(
                f"Option 'method' of pass 'quantize' is '{self.method}', not one of {known}."
            )
        if self.samples < 1:
            raise PassError(f"Option 'samples' of pass 'quantize' is {self.samples}, below 1.")

    def run(self, model: Model, context: Context) -> PassResult:
        """Quantize; a network that is quantized already is left as it is."""
        if is_quantized(model):
            return PassResult(model, changed=False, notes=("it is quantized already",))
        batches = context.batches(self.name, self.samples)
        made, notes = lower(model, self._recipe, batches, context.machine, context.progress)
        return PassResult(made, changed=True, notes=notes)

    def tuned(self, model: Model, context: Context) -> Quantize:
        """Choose the method and the layers that stay float on samples that are held out."""
        batches = context.batches(self.name, self.samples)
        found = tune(model, self._recipe, batches, context.machine, context.progress)
        return replace(self, method=found.method, keep=" ".join(found.keep))

    def retuned(self, model: Model, context: Context) -> Quantize:
        """Choose the layers that stay float anew; how ranges are found stays."""
        batches = context.batches(self.name, self.samples)
        recipe = replace(self._recipe, keep=())
        found = tune(
            model, recipe, batches, context.machine, context.progress, methods=(self.method,)
        )
        return replace(self, keep=" ".join(found.keep))

    def spared(self, model: Model, context: Context, enough: Callable[[Model], bool]) -> Quantize:
        """Keep as few more layers in float as are enough."""
        batches = context.batches(self.name, self.samples)
        found = spare(
            model, self._recipe, batches, context.machine, context.progress, enough=enough
        )
        return replace(self, keep=" ".join(found.keep))

    def stand_in(self, model: Model) -> Model:
        """Quantize to ranges that are made up, on which time does not depend."""
        return stand_in(model, tuple(self.keep.split()))

    def part(self, model: Model, name: str, context: Context) -> Model:
        """Quantize a layer by itself, but for what it puts out, which its reader quantizes."""
        if matches(name, self.keep.split()):
            return model
        return open_end(self.run(model, context).model)

    @property
    def _recipe(self) -> Recipe:
        return Recipe(self.method, tuple(self.keep.split()), self.balance, self.correct)
