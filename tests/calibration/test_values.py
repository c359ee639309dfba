from __future__ import annotations

import pytest
from onnx import TensorProto, TypeProto, helper

from onnxcp.calibration.values import value_type, with_extents

FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tensor(float)", FLOATS),
        ("tensor(bfloat16)", helper.make_tensor_type_proto(TensorProto.BFLOAT16, None)),
        ("tensor(float8e4m3fn)", helper.make_tensor_type_proto(TensorProto.FLOAT8E4M3FN, None)),
        ("sparse_tensor(double)", helper.make_sparse_tensor_type_proto(TensorProto.DOUBLE, None)),
        ("seq(tensor(float))", helper.make_sequence_type_proto(FLOATS)),
        (
            "optional(seq(tensor(float)))",
            helper.make_optional_type_proto(helper.make_sequence_type_proto(FLOATS)),
        ),
        ("map(int64,tensor(float))", helper.make_map_type_proto(TensorProto.INT64, FLOATS)),
    ],
)
def test_types_are_read_as_onnx_runtime_writes_them(text: str, kind: TypeProto) -> None:
    assert value_type(text) == kind


@pytest.mark.parametrize(
    ("shapes", "extents"),
    [
        ({(2, 3)}, [2, 3]),
        ({(2, 3), (2, 4)}, [2, None]),
        ({()}, []),
        ({(0, 1)}, [0, 1]),
    ],
)
def test_extents_are_open_where_shapes_differ(
    shapes: set[tuple[int, ...]], extents: list[int | None]
) -> None:
    assert with_extents(FLOATS, shapes) == helper.make_tensor_type_proto(TensorProto.FLOAT, extents)


@pytest.mark.parametrize("shapes", [{(2,), (2, 1)}, {None}, {None, (1,)}])
def test_there_is_no_shape_where_ranks_differ(shapes: set[tuple[int, ...] | None]) -> None:
    assert with_extents(FLOATS, shapes) == FLOATS


def test_a_declared_shape_gives_way_to_a_seen_one() -> None:
    declared = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3])
    assert with_extents(declared, {(1, 2, 3)}).tensor_type.shape.dim[2].dim_value == 3
    assert [dim.dim_param for dim in declared.tensor_type.shape.dim] == ["n", ""]


def test_what_is_no_tensor_has_no_shape() -> None:
    kind = helper.make_sequence_type_proto(FLOATS)
    assert with_extents(kind, {None}) == kind
