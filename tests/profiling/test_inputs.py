from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import parser

from onnxcp.errors import DataError
from onnxcp.profiling.inputs import (
    InputSpec,
    check_feeds,
    parse_input_shapes,
    random_feeds,
    resolve_shapes,
    session_inputs,
    with_batch,
)
from onnxcp.profiling.session import infer, open_session

FLOAT = np.dtype(np.float32)


def session(inputs: str) -> ort.InferenceSession:
    """A session with the inputs given, of which it returns the first."""
    first = inputs.split(",  ")[0]
    kind, name = first.rsplit(" ", 1)
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> '
        f"g ({inputs}) => ({kind} y_out) {{ y_out = Identity({name}) }}"
    )
    return open_session(parser.parse_model(text).SerializeToString())


class TestSessionInputs:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            ("float", np.float32),
            ("double", np.float64),
            ("float16", np.float16),
            ("bool", np.bool_),
            ("int8", np.int8),
            ("uint64", np.uint64),
        ],
    )
    def test_types(self, kind: str, dtype: Any) -> None:
        (spec,) = session_inputs(session(f"{kind}[N,3] x"))
        assert spec == InputSpec("x", np.dtype(dtype), ("N", 3))

    def test_strings(self) -> None:
        assert session_inputs(session("string[N] x")) == (InputSpec("x", "string", ("N",)),)

    def test_bfloat16(self) -> None:
        (spec,) = session_inputs(session("bfloat16[N] x"))
        assert str(spec.dtype) == "bfloat16"

    @pytest.mark.parametrize("kind", ["seq(float[N])", "optional(float[N])"])
    def test_refuses_what_is_no_tensor(self, kind: str) -> None:
        with pytest.raises(DataError, match=r"Input 's' is a (seq|optional)\(tensor\(float\)\)"):
            session_inputs(session(f"float[N] x,  {kind} s"))

    def test_refuses_parts_of_bytes(self) -> None:
        text = (
            '<ir_version: 10, opset_import: ["" : 21]> '
            "g (int4[N] x) => (float[N] y) { y = Cast <to = 1> (x) }"
        )
        opened = open_session(parser.parse_model(text).SerializeToString())
        with pytest.raises(DataError, match=r"Input 'x' is a tensor\(int4\)"):
            session_inputs(opened)

    def test_initializers_need_no_feeding(self) -> None:
        text = (
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, float[1] w) => (float[N] y) '
            "<float[1] w = {2}> { y = Mul(x, w) }"
        )
        opened = open_session(parser.parse_model(text).SerializeToString())
        assert [spec.name for spec in session_inputs(opened)] == ["x"]
        check_feeds(opened, {"x": np.ones(3, np.float32), "w": np.ones(1, np.float32)})


class TestParseInputShapes:
    @pytest.mark.parametrize(
        ("text", "shapes"),
        [
            ("x:1,3,224,224", {"x": (1, 3, 224, 224)}),
            ("1,3,224,224", {"": (1, 3, 224, 224)}),
            ("8", {"": (8,)}),
            ("x:1,3 y:7", {"x": (1, 3), "y": (7,)}),
            (" x:1,3;  y:7; ", {"x": (1, 3), "y": (7,)}),
            ("input:0:1,3", {"input:0": (1, 3)}),
            ("past:1,8,0,64", {"past": (1, 8, 0, 64)}),
        ],
    )
    def test_reads(self, text: str, shapes: dict[str, tuple[int, ...]]) -> None:
        assert parse_input_shapes(text) == shapes

    @pytest.mark.parametrize(
        "text", ["", "x", "x:", "x:1,,3", "x:-1,3", "x:N,3", "x:1, 3", "x:1x3", "x:1.5"]
    )
    def test_refuses(self, text: str) -> None:
        with pytest.raises(
            DataError, match=r"Cannot read the input shape '.*'; write NAME:N,C,H,W"
        ):
            parse_input_shapes(text)

    def test_refuses_a_name_twice(self) -> None:
        with pytest.raises(DataError, match="give input 'x' twice"):
            parse_input_shapes("x:1 x:2")

    @pytest.mark.parametrize("text", ["1,3 y:7", "y:7;1,3"])
    def test_refuses_a_name_left_out(self, text: str) -> None:
        with pytest.raises(DataError, match="leave out a name"):
            parse_input_shapes(text)


class TestResolveShapes:
    image = InputSpec("x", FLOAT, ("N", 3, "H", None))
    mask = InputSpec("m", FLOAT, ("N", "H"))
    fixed = InputSpec("f", FLOAT, (4, 3))
    scalar = InputSpec("s", FLOAT, ())

    def test_open_extents_are_1(self) -> None:
        assert resolve_shapes([self.image, self.scalar]) == {"x": (1, 3, 1, 1), "s": ()}

    def test_given_extents_hold_for_the_symbol_everywhere(self) -> None:
        shapes = resolve_shapes([self.mask, self.image], {"x": (2, 3, 8, 9)})
        assert shapes == {"m": (2, 8), "x": (2, 3, 8, 9)}

    def test_given_shapes_leave_the_other_inputs_open_extents_at_1(self) -> None:
        unknown = InputSpec("u", FLOAT, (None, None))
        shapes = resolve_shapes([self.image, self.mask, self.fixed, unknown], {"m": (2, 7)})
        assert shapes == {"x": (2, 3, 7, 1), "m": (2, 7), "f": (4, 3), "u": (1, 1)}

    def test_a_shape_without_a_name(self) -> None:
        assert resolve_shapes([self.fixed], {"": (4, 3)}) == {"f": (4, 3)}

    def test_any_shape_fits_an_unknown_rank(self) -> None:
        assert resolve_shapes([self.scalar], {"s": (2, 3)}) == {"s": (2, 3)}

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ({"x": (1, 4, 8, 8)}, r"'x' wants shape \(N, 3, H, \?\), and was given \(1, 4, 8, 8\)"),
            ({"x": (1, 3, 8)}, r"'x' wants shape \(N, 3, H, \?\), and was given \(1, 3, 8\)"),
            ({"y": (1,)}, r"no input 'y'; its inputs are 'x' \(N, 3, H, \?\), 'm' \(N, H\)"),
            ({"": (1,)}, r"shape \(1\) needs a name, since the model has 2 inputs: 'x', 'm'"),
            ({"x": (2, 3, 8, 8), "m": (3, 8)}, r"given \(3, 8\), but 'N' was already given as 2"),
        ],
    )
    def test_refuses(self, shapes: dict[str, tuple[int, ...]], message: str) -> None:
        with pytest.raises(DataError, match=message):
            resolve_shapes([self.image, self.mask], shapes)


class TestRandomFeeds:
    @pytest.mark.parametrize(
        "kind",
        ["float", "double", "float16", "bfloat16", "bool", "int8", "uint8", "int64", "string"],
    )
    def test_runs(self, kind: str) -> None:
        opened = session(f"{kind}[N,3] x")
        feeds = random_feeds(opened, shapes={"x": (4, 3)})
        check_feeds(opened, feeds)
        assert feeds["x"].shape == (4, 3)
        if kind != "bfloat16":  # ONNX Runtime accepts it but cannot return it to Python.
            np.testing.assert_array_equal(infer(opened, feeds)[0], feeds["x"])

    @pytest.mark.parametrize("count", [10**20, 2**62, 10**12])
    @pytest.mark.parametrize("kind", ["float", "int64"])
    def test_that_are_too_large_are_refused(self, kind: str, count: int) -> None:
        opened = session(f"{kind}[N,999] x")
        with pytest.raises(DataError, match=f"^An input of {count}x999 values does not fit into"):
            random_feeds(opened, shapes={"x": (count, 999)})

    def test_values(self) -> None:
        opened = session("float[N,999] x,  int64[N,999] i,  string[N] s")
        feeds = random_feeds(opened, seed=3)
        assert feeds["x"].std() == pytest.approx(1, abs=0.1)
        assert set(feeds["i"].ravel()) == {0, 1}
        assert feeds["s"].tolist() == [""]

    def test_seed(self) -> None:
        opened = session("float[N,5] x")
        one, same, other = (random_feeds(opened, seed=seed)["x"] for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_shapes(self) -> None:
        opened = session("float[N,3,H,W] x")
        feeds = random_feeds(opened, shapes=parse_input_shapes("2,3,5,7"))
        assert feeds["x"].shape == (2, 3, 5, 7)


class TestCheckFeeds:
    @pytest.mark.parametrize(
        ("feeds", "message"),
        [
            ({}, r"Input 'x' \(N, 3\) is missing; given are none"),
            ({"z": np.ones(2)}, r"Input 'x' \(N, 3\) is missing; given are 'z'"),
            ({"x": np.ones((2, 3))}, "'x' wants float32, and was given float64"),
            (
                {"x": np.ones((2, 4), np.float32)},
                r"'x' wants shape \(N, 3\), and was given \(2, 4\)",
            ),
            ({"x": np.ones(3, np.float32)}, r"'x' wants shape \(N, 3\), and was given \(3\)"),
            ({"x": [[1.0, 2.0, 3.0]]}, "'x' must be an array, and is of type list"),
            (
                {"x": np.ones((2, 3), np.float32), "z": np.ones(2)},
                r"no input 'z'; its inputs are 'x' \(N, 3\)",
            ),
        ],
    )
    def test_refuses(self, feeds: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            check_feeds(session("float[N,3] x"), feeds)

    @pytest.mark.parametrize("dtype", [object, "U1"])
    def test_strings(self, dtype: Any) -> None:
        check_feeds(session("string[N] x"), {"x": np.array(["a"], dtype)})
        with pytest.raises(DataError, match="'x' wants string, and was given int64"):
            check_feeds(session("string[N] x"), {"x": np.array([1])})


F = FLOAT


@pytest.mark.parametrize(
    ("specs", "batched"),
    [
        ([InputSpec("x", F, ("N", 3))], {"x": (8, 3)}),
        ([InputSpec("x", F, (None, 3))], {"x": (8, 3)}),
        (
            [InputSpec("x", F, ("N", 3)), InputSpec("y", F, ("N",))],
            {"x": (8, 3), "y": (8,)},
        ),
        (
            [InputSpec("x", F, ("N", 3)), InputSpec("y", F, ("T",))],
            {"x": (8, 3), "y": (1,)},
        ),
        ([InputSpec("n", F, ()), InputSpec("x", F, ("N", 3))], {"n": (), "x": (8, 3)}),
        ([InputSpec("x", F, (8, 3))], {"x": (8, 3)}),
    ],
)
def test_with_batch(specs: list[InputSpec], batched: dict[str, tuple[int, ...]]) -> None:
    shapes = resolve_shapes(specs)
    assert with_batch(specs, shapes, 8) == batched
    assert with_batch(specs, batched, 8) == batched


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            InputSpec("x", F, (4, 3)),
            r"no batch to set to 8: .*'x' \(4, 3\), so that only 4 can",
        ),
        (InputSpec("n", F, ()), r"no batch to set to 8: its inputs are 'n' \(\)\.$"),
    ],
)
def test_without_a_batch(spec: InputSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_batch([spec], resolve_shapes([spec]), 8)
