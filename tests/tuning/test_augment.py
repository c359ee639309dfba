from __future__ import annotations

import pytest
import torch

from onnxcp.errors import DataError
from onnxcp.tuning.augment import parse_augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 64) -> torch.Tensor:
    return torch.arange(count * 2 * 5 * 6, dtype=torch.float32).reshape(count, 2, 5, 6)


def test_nothing_by_default() -> None:
    x = pictures()
    assert torch.equal(parse_augment("")({"x": x}, generator())["x"], x)


def test_flip_mirrors_about_half() -> None:
    x = pictures()
    y = parse_augment("flip")({"x": x}, generator())["x"]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(x, y, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(x, y, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_crop_moves_and_repeats_the_borders(dtype: torch.dtype) -> None:
    x = pictures().to(dtype)
    y = parse_augment("crop:2")({"x": x}, generator())["x"]
    assert y.shape == x.shape
    assert y.dtype == dtype
    rows, columns = torch.arange(5), torch.arange(6)
    seen = set()
    for before, after in zip(x, y, strict=True):
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(
                before[:, (rows + down).clamp(0, 4)][:, :, (columns + right).clamp(0, 5)], after
            )
        ]
        assert found
        seen |= set(found)
    assert len(seen) > 15


def test_inputs_of_one_sample_are_treated_alike_and_others_left() -> None:
    x, other = pictures(), torch.arange(64.0)
    batch = {"x": x, "mask": x + 1, "number": other}
    y = parse_augment("flip, crop:1")(batch, generator())
    assert torch.equal(y["mask"], y["x"] + 1)
    assert torch.equal(y["number"], other)


def test_what_is_drawn_comes_from_the_generator() -> None:
    augment, x = parse_augment("flip,crop:2"), pictures()
    one, same, other = (augment({"x": x}, generator(seed))["x"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("text", ["blur", "crop", "crop:0", "crop:x", "flip:2", "flip,,crop:1"])
def test_no_such(text: str) -> None:
    with pytest.raises(DataError, match="There is no augmentation"):
        parse_augment(text)
