"""Resize and Upsample, axis by axis, by the formulas of the ONNX specification."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxcp.tuning.operators.registry import Call, operator, positive


def _resizable(call: Call) -> str | None:
    mode = call.get("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        return "it crops by coordinates"
    if call.get("antialias", 0):
        return "it smooths where it shrinks"
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps proportions"
    return None


@operator("Resize", "Upsample", settings=(1, 2, 3), check=_resizable)
def resize(call: Call, x: Tensor, *others: Tensor | None) -> Tensor:
    """Interpolate: nearest, linear or cubic, one axis after the other."""
    # Upsample, and Resize before version 11, have no region, and scales in its place.
    early = call.op == "Upsample" or call.version < 11
    scales = _numbers(call, others, 0 if early else 1)
    sizes = _numbers(call, others, 2)
    if scales is None and sizes is None:
        scales = list(call.get("scales"))
    axes = [positive(axis, x.ndim) for axis in call.get("axes") or range(x.ndim)]
    source = x
    for number, axis in enumerate(axes):
        extent = source.shape[axis]
        if sizes is not None:
            wanted = int(sizes[number])
            scale = wanted / extent
        else:
            assert scales is not None
            scale = float(scales[number])
            wanted = int(extent * scale)
        if scale != 1 or wanted != extent:
            x = _along(call, x, axis, wanted, scale, early=early)
    return x


def _numbers(call: Call, others: tuple[Tensor | None, ...], position: int) -> list[float] | None:
    """Return what an input after the first says, if there is one and it says anything."""
    value = others[position] if position < len(others) else None
    return None if value is None else call.numbers(position + 1, value) or None


def _along(call: Call, x: Tensor, axis: int, wanted: int, scale: float, *, early: bool) -> Tensor:
    """Interpolate along one axis."""
    extent = x.shape[axis]
    places = _places(
        "asymmetric" if early else call.get("coordinate_transformation_mode", "half_pixel"),
        wanted,
        extent,
        scale,
    )
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        rounding = call.get("nearest_mode", "round_prefer_floor")
        if early:  # by ONNX Runtime; nothing was specified
            rounding = "ceil" if scale < 1 else "floor"
        return _taken(x, axis, _rounded(places, rounding))
    left = torch.floor(places)
    over = places - left
    if mode == "linear" or mode == "bilinear":
        # Beyond the border there is only the border.
        weights = {0: 1 - over, 1: over}
    else:
        weights = _cubic(over, call.get("cubic_coeff_a", -0.75))
    if mode == "cubic" and call.get("exclude_outside", 0):
        inside = {k: w * ((left + k >= 0) & (left + k < extent)) for k, w in weights.items()}
        total = torch.stack(list(inside.values())).sum(0)
        weights = {offset: weight / total for offset, weight in inside.items()}
    result = torch.zeros((), dtype=x.dtype, device=x.device)
    for offset, weight in weights.items():
        shape = [-1 if each == axis else 1 for each in range(x.ndim)]
        there = weight.to(x.device, x.dtype).reshape(shape)
        result = result + there * _taken(x, axis, left + offset)
    return result


def _places(mode: str, wanted: int, extent: int, scale: float) -> Tensor:
    """Return where in the input the entries of the output lie."""
    numbers = torch.arange(wanted, dtype=torch.float32)
    if mode == "asymmetric":
        return numbers / scale
    if mode == "align_corners":
        return numbers * (extent - 1) / (wanted - 1) if wanted > 1 else torch.zeros(wanted)
    if mode == "pytorch_half_pixel" and wanted == 1:
        return torch.zeros(1)
    shift = torch.zeros(())
    if mode == "half_pixel_symmetric":
        shift = extent / 2 * (1 - wanted / (torch.tensor(scale) * extent))
    return shift + (numbers + 0.5) / scale - 0.5


def _rounded(places: Tensor, mode: str) -> Tensor:
    match mode:
        case "floor":
            return torch.floor(places)
        case "ceil":
            return torch.ceil(places)
        case "round_prefer_ceil":
            return torch.floor(places + 0.5)
        case _:
            return torch.ceil(places - 0.5)


def _taken(x: Tensor, axis: int, places: Tensor) -> Tensor:
    index = places.clamp(0, x.shape[axis] - 1).to(x.device, torch.int64)
    return x.index_select(axis, index)


def _cubic(over: Tensor, a: float) -> dict[int, Tensor]:
    """Return Keys' weights of the four neighbours."""
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (over, 1 - over)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + over, 2 - over)]
    return {-1: far[0], 0: near[0], 1: near[1], 2: far[1]}
