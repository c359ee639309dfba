"""Choosing how to quantize by held-out samples, and doing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcp.graph.model import Model, load
from onnxcp.precision import recipe as recipes
from onnxcp.precision.half import to_half
from onnxcp.precision.processor import saturates
from onnxcp.precision.recipe import Recipe, lower, spare, stand_in, tune
from onnxcp.profiling.machine import Machine
from tests.clockwork import trial
from tests.networks import initializers, operators
from tests.quantized import error, network, samples

MACHINE = Machine()


def hurt() -> onnx.ModelProto:
    """Return the network with a first layer that 8 bits cannot hold: a channel of huge weights."""
    proto = network()
    for tensor in proto.graph.initializer:
        if tensor.name == "two/0.weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, 0] *= 300
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return proto


@pytest.fixture
def same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "paired", lambda *_, **__: trial(1.0, 1.0))


class TestLowering:
    def test_says_what_it_did(self) -> None:
        made, notes = lower(load(network()), Recipe(keep=("one/0",)), samples(), MACHINE)
        assert notes == ("ranges by minmax", "in float: one/0", "2 pairs of factors balanced")
        assert error(made, network()) < 0.05

    def test_says_that_the_opset_was_raised(self) -> None:
        proto = network()
        proto.opset_import[0].version = 11  # of which all of its operators are, too
        _, notes = lower(load(proto), Recipe(), samples(), MACHINE)
        assert notes[1] == "opset raised from 11 to 13, which int8 needs"

    def test_comes_out_the_same_every_time(self) -> None:
        one, other = (
            lower(load(network()), Recipe("entropy"), samples(), MACHINE)[0] for _ in range(2)
        )
        assert one.proto.SerializeToString() == other.proto.SerializeToString()

    @pytest.mark.parametrize("option", ["balanced", "corrected"])
    def test_options_take_effect(self, option: str) -> None:
        plain = Recipe(balanced=False, corrected=False)
        before, after = (
            initializers(lower(load(network()), each, samples(), MACHINE)[0].proto)
            for each in (plain, replace(plain, **{option: True}))
        )
        assert any(not np.array_equal(before[name], after[name]) for name in before)

    def test_what_is_only_timed_needs_no_samples(self) -> None:
        model = load(network())
        assert operators(stand_in(model).proto) == operators(
            lower(model, Recipe(), samples(), MACHINE)[0].proto
        )


@pytest.mark.usefixtures("same_time")
class TestTuning:
    def test_keeps_the_layer_that_hurts_in_float(self) -> None:
        found = tune(load(hurt()), Recipe(balanced=False), samples(64), MACHINE)
        assert found.keep
        plain, kept = (
            error(lower(load(hurt()), each, samples(64), MACHINE)[0], hurt())
            for each in (Recipe(found.method, (), False), found)
        )
        assert kept < plain

    def test_keeps_nothing_that_costs_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recipes, "paired", lambda *_, **__: trial(1.0, 1.2))
        assert tune(load(hurt()), Recipe(balanced=False), samples(64), MACHINE).keep == ()

    def test_what_was_kept_stays(self) -> None:
        found = tune(load(network()), Recipe(keep=("one/0",)), samples(64), MACHINE)
        assert found.keep[0] == "one/0"

    def test_takes_the_ranges_that_samples_held_out_are_closest_with(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a value that is far off in what is fitted to, min and max are the worst."""
        batches = samples(64)
        batches[0]["image"][0, 0, 0, 0] = 500.0
        assert tune(load(network()), Recipe(), batches, MACHINE).method != "minmax"


class TestSparing:
    def test_keeps_as_few_layers_in_float_as_are_enough(self) -> None:
        model, plain = load(hurt()), Recipe(balanced=False)
        before = error(lower(model, plain, samples(64), MACHINE)[0], hurt())
        found = spare(
            model,
            plain,
            samples(64),
            MACHINE,
            enough=lambda made: error(made, hurt()) < 0.8 * before,
        )
        assert found.keep
        made, fewer = (
            error(lower(model, replace(plain, keep=keep), samples(64), MACHINE)[0], hurt())
            for keep in (found.keep, found.keep[:-1])
        )
        assert made < 0.8 * before <= fewer

    @pytest.mark.parametrize("float_is_enough", [True, False])
    def test_nothing_is_kept_where_nothing_is_enough(self, float_is_enough: bool) -> None:
        model, looked = load(network()), list[bool]()

        def enough(made: Model) -> bool:
            looked.append(made is model)
            return made is model and float_is_enough

        recipe = Recipe(keep=("one/0",))
        assert spare(model, recipe, samples(), MACHINE, enough=enough) == recipe
        assert looked.count(True) == 1
        assert bool(looked.count(False)) == float_is_enough

    def test_what_was_kept_stays(self) -> None:
        model, limit = load(hurt()), iter([True, False, True])  # in float, with one, with two
        recipe = Recipe(keep=("one/0",))
        found = spare(model, recipe, samples(64), MACHINE, enough=lambda _: next(limit))
        assert len(found.keep) == 3
        assert found.keep[0] == "one/0"
        assert len(set(found.keep)) == 3


class TestProcessors:
    @pytest.mark.parametrize(
        ("machine", "flags", "expected"),
        [
            ("x86_64", "flags : sse avx2 avx512f", True),
            ("x86_64", "flags : avx512f avx512_vnni", False),
            ("AMD64", "flags : avx2 avx_vnni", False),
            ("aarch64", "", False),
        ],
    )
    def test_sum_without_saturation_with_vnni(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        machine: str,
        flags: str,
        expected: bool,
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        info = tmp_path / "cpuinfo"
        info.write_text(flags)
        assert saturates(info) is expected

    def test_seven_bits_where_flags_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        assert saturates(tmp_path / "missing")


def test_half_keeps_the_interface_and_little_is_lost() -> None:
    made = to_half(load(network()))
    kinds = {value.dtype for value in initializers(made.proto).values()}
    assert kinds == {np.dtype(np.float16)}
    assert made.proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert error(made, network()) < 5e-3
