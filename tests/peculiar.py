"""Models with all that ONNX allows around one convolution, ``conv``, that may be factorised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.networks import model_of, noise

Build = Callable[[], onnx.ModelProto]

NEWEST_OPSET = int(onnx.defs.onnx_opset_version())
NEWEST_IR = int(onnx.IR_VERSION)
ATTRIBUTE = AttributeProto.AttributeType


def plain(*extra: onnx.NodeProto, **options: Any) -> onnx.ModelProto:
    """Return Conv and Relu, ``x`` to ``h`` to ``y``, followed by other nodes."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
        *extra,
    ]
    weights = {"w": noise(6, 4, 3, 3), "b": noise(6, seed=1)} | options.pop("weights", {})
    shape = (1, 4, 7, 8)
    return model_of(nodes, inputs={"x": shape}, weights=weights, **options)


def documented() -> onnx.ModelProto:
    """Have every text and property that there is a field for."""
    model = plain(producer_name="maker", producer_version="1.2", domain="org.example")
    model.model_version = 7
    model.doc_string = "of the model"
    graph = model.graph
    graph.doc_string = "of the graph"
    helper.set_model_props(model, {"author": "someone", "empty": ""})
    graph.metadata_props.add(key="graph", value="é")
    known = onnx.shape_inference.infer_shapes(model)
    graph.value_info.extend(known.graph.value_info)
    named: list[Any] = [*graph.node, *graph.initializer]
    named += [*graph.input, *graph.output, *graph.value_info]
    for each in named:
        each.doc_string = f"of {each.name}"
        each.metadata_props.add(key="of", value=each.name)
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = f"of {attribute.name}"
    graph.input[0].type.denotation = "TENSOR"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return model


def annotated() -> onnx.ModelProto:
    """Have quantization annotations: of an activation that stays, and of the weight."""
    model = plain(weights={"scale": noise(1), "zero": np.zeros(1, np.int8)})
    for tensor in ("h", "y", "w"):
        annotation = model.graph.quantization_annotation.add(tensor_name=tensor)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
        annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="zero")
    return model


def trained() -> onnx.ModelProto:
    """Have training information, whose graphs are nobody's business."""
    model = plain()
    step = model.training_info.add()
    step.algorithm.name = "sgd"
    step.algorithm.node.append(helper.make_node("Neg", ["w"], ["w_next"], name="step"))
    step.initialization.name = "start"
    step.initialization.initializer.append(numpy_helper.from_array(noise(3), "momentum"))
    step.initialization_binding.add(key="b", value="momentum")
    step.update_binding.add(key="w", value="w_next")
    return model


def with_functions() -> onnx.ModelProto:
    """Have model-local functions, two of one name, with attributes, defaults and a conv inside."""
    model = plain(
        helper.make_node("Twice", ["y"], ["z"], name="call", domain="org.example"),
        domains={"org.example": 1},
        ir_version=10,
        outputs=["y", "z"],
    )
    model.graph.node[-1].overload = "float"
    opsets = [helper.make_opsetid("", 17)]
    add = helper.make_node("Add", ["a", "a"], ["c"], name="double", doc_string="of double")
    conv = helper.make_node("Conv", ["a", "a"], ["c"], name="inner")
    conv.attribute.add(name="group", type=AttributeProto.INT, ref_attr_name="groups")
    nested = helper.make_graph([add], "body", [], [helper.make_empty_tensor_value_info("c")])
    branch = helper.make_node("If", ["a"], ["c"], name="branch")
    branch.attribute.append(helper.make_attribute("then_branch", nested))
    branch.attribute.append(helper.make_attribute("else_branch", nested))
    defaults = [helper.make_attribute("groups", 1), helper.make_attribute("graph", nested)]
    model.functions.extend(
        [
            helper.make_function("org.example", "Twice", ["a"], ["c"], [add], opsets),
            helper.make_function("org.example", "Conved", ["a"], ["c"], [conv, branch], opsets),
        ]
    )
    model.functions[0].overload = "float"
    model.functions[0].doc_string = "of Twice"
    model.functions[0].metadata_props.add(key="a", value="b")
    model.functions[1].attribute_proto.extend(defaults)
    return model


def sparse() -> onnx.ModelProto:
    """Have a sparse initializer, and one in a Constant node."""
    model = plain(
        helper.make_node("Mul", ["y", "s"], ["z"], name="mul"),
        helper.make_node("Constant", [], ["k"], name="constant", sparse_value=_sparse("")),
        outputs=["y", "z", "k"],
    )
    model.graph.sparse_initializer.append(_sparse("s"))
    return model


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), name)
    indices = numpy_helper.from_array(np.array([1, 5], np.int64), f"{name}_indices")
    return helper.make_sparse_tensor(values, indices, [1, 6, 1, 1])


def branching() -> onnx.ModelProto:
    """Have If and Loop, whose bodies read tensors of the main graph and own initializers."""

    def body(name: str, op: str, inputs: list[str], output: str, own: str) -> onnx.GraphProto:
        conv = helper.make_node("Conv", ["h", own], [f"{name}_c"], name="conv_in_" + name)
        node = helper.make_node(op, [f"{name}_c", *inputs], [output], name=name, doc_string=name)
        node.metadata_props.add(key="of", value=name)
        graph = helper.make_graph(
            [conv, node],
            name,
            [],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(noise(6, 6, 1, 1), own)],
            doc_string=f"of {name}",
        )
        graph.metadata_props.add(key="graph", value=name)
        return graph

    then = body("then", "Add", ["h"], "t", "then_w")
    otherwise = body("else", "Sub", ["h"], "e", "else_w")
    loop = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"], name=""),
            helper.make_node("Add", ["carried", "b4"], ["carried_on"], name="in_loop"),
        ],
        "loop",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, None),
        ],
    )
    return plain(
        helper.make_node("If", ["yes"], ["i0"], name="if", then_branch=then, else_branch=otherwise),
        helper.make_node("Loop", ["three", "yes", "i0"], ["z"], name="loop", body=loop),
        weights={"yes": np.array(True), "three": np.array(3, np.int64), "b4": noise(6, 1, 1)},
        outputs=["y", "z"],
    )


def overridable(ir_version: int) -> onnx.ModelProto:
    """Have initializers that are graph inputs too, as all had to be up to IR version 3."""
    model = plain(ir_version=ir_version, opset=9)
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        value.doc_string = f"default of {tensor.name}"
        model.graph.input.append(value)
    return model


def untyped_attributes() -> onnx.ModelProto:
    """Leave it to the filled field which type an attribute has, as IR version 1 did."""
    model = plain()
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.ClearField("type")
    return model


def every_attribute() -> onnx.ModelProto:
    """Have a node of a custom domain with an attribute of every type."""
    node = helper.make_node("Odd", ["y"], ["z"], name="odd", domain="org.example")
    tensor, sparse_tensor = numpy_helper.from_array(noise(2, 2), "t"), _sparse("")
    graph = helper.make_graph([helper.make_node("Neg", ["y"], ["n"])], "g", [], [])
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    values: dict[str, Any] = {
        "f": 0.1, "i": -(2**40), "s": "text", "t": tensor, "g": graph, "tp": kind,
        "sparse_tensor": sparse_tensor, "floats": [0.1, 0.2], "ints": [1, 2],
        "strings": ["a", "é"], "tensors": [tensor, tensor], "graphs": [graph, graph],
        "type_protos": [kind], "sparse_tensors": [sparse_tensor],
    }  # fmt: skip
    node.attribute.extend(helper.make_attribute(key, value) for key, value in values.items())
    node.attribute.add(name="no_ints", type=AttributeProto.INTS)
    node.attribute.add(name="bytes", type=AttributeProto.STRING, s=b"\xff\xfe\x00binary")
    return plain(node, domains={"org.example": 3}, outputs=["y", "z"])


TYPES = [
    name
    for name, number in TensorProto.DataType.items()
    if number not in (TensorProto.UNDEFINED, TensorProto.STRING)
]


def every_type() -> onnx.ModelProto:
    """Have an initializer of every type, each read by a node."""
    model = plain(opset=NEWEST_OPSET, ir_version=NEWEST_IR)
    for name in [*TYPES, "STRING"]:
        tensor = model.graph.initializer.add(name=f"of_{name}", dims=[2])
        tensor.data_type = TensorProto.DataType.Value(name)
        if name == "STRING":
            tensor.string_data.extend([b"a", b"\xff"])
        else:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            values = numpy_helper.from_array(np.array([0, 1]).astype(dtype))
            tensor.raw_data = values.raw_data
        node = helper.make_node("Identity", [tensor.name], [f"{name}_out"], name=f"read_{name}")
        model.graph.node.append(node)
        constant = helper.make_node("Constant", [], [f"{name}_constant"], name=f"make_{name}")
        constant.attribute.append(helper.make_attribute("value", tensor))
        model.graph.node.append(constant)
    return model


def typed_fields() -> onnx.ModelProto:
    """Keep weights in the typed fields of their messages and not as raw bytes."""
    model = plain()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values.tolist())
    return model


def stale() -> onnx.ModelProto:
    """Have shapes of tensors that there are no more, and one that stands there twice."""
    model = plain()
    for name in ("gone", "conv/channel-svd/0/out", "h", "h"):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6, 7, 8])
        model.graph.value_info.append(value)
    return model


def badly_named() -> onnx.ModelProto:
    """Have nodes without a name and with the name of another."""
    model = plain(
        helper.make_node("Neg", ["y"], ["z"]),
        helper.make_node("Neg", ["z"], ["u"]),
        helper.make_node("Abs", ["u"], ["v"], name="relu"),
        outputs=["y", "v"],
    )
    model.graph.name = ""
    return model


def of_other_kinds() -> onnx.ModelProto:
    """Have inputs and outputs that are no tensors, and an input and a weight as outputs."""
    model = plain(weights={"unread": noise(3), "output": noise(3)}, outputs=["y", "output"])
    graph = model.graph
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", None])
    kinds = {
        "list": helper.make_sequence_type_proto(tensor),
        "maybe": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "dict": helper.make_map_type_proto(TensorProto.INT64, tensor),
        "thin": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3, 4]),
        "rankless": helper.make_tensor_type_proto(TensorProto.FLOAT, None),
    }
    for name, kind in kinds.items():
        graph.input.append(helper.make_value_info(name, kind))
        graph.node.append(helper.make_node("Identity", [name], [f"{name}_out"], name=name))
        graph.output.append(helper.make_value_info(f"{name}_out", kind))
    graph.output.append(graph.input[0])
    graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (6, 4, 3, 3)))
    return model


def distributed() -> onnx.ModelProto:
    """Say on which devices its nodes run (IR version 11)."""
    model = plain(ir_version=11)
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    for node in model.graph.node:
        configuration = node.device_configurations.add(configuration_id="two", pipeline_stage=1)
        configuration.sharding_spec.add(tensor_name=node.output[0], device=[0, 1])
    return model


PECULIAR: dict[str, Build] = {
    "plain": plain,
    "documented": documented,
    "annotated": annotated,
    "trained": trained,
    "functions": with_functions,
    "sparse": sparse,
    "branching": branching,
    "overridable-ir3": lambda: overridable(3),
    "overridable-ir8": lambda: overridable(8),
    "untyped-attributes": untyped_attributes,
    "every-attribute": every_attribute,
    "every-type": every_type,
    "typed-fields": typed_fields,
    "stale": stale,
    "badly-named": badly_named,
    "of-other-kinds": of_other_kinds,
    "distributed": distributed,
    **{
        f"ir{ir}": lambda ir=ir: plain(ir_version=ir)  # type: ignore[misc]
        for ir in range(4, NEWEST_IR + 1)
    },
    **{
        f"opset{opset}": lambda opset=opset: plain(  # type: ignore[misc]
            helper.make_node("Neg", ["y"], ["z"], domain="org.example"),
            opset=opset,
            domains={"org.example": 2, "com.microsoft": 1},
        )
        for opset in range(7, NEWEST_OPSET + 1)
    },
}
