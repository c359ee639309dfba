"""Networks in int8, held against themselves in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model, load
from onnxcp.precision.qdq import activations, is_quantized, prepare, quantize
from onnxcp.precision.ranges import METHODS, assumed, calibrate
from tests.networks import conv_model, difference, initializers, model_of, noise, operators, run
from tests.quantized import error, network, outputs, samples

INT8 = 0.05  # relative error of 8 bits in layers after one another: well above what was seen, 0.01


@pytest.fixture(scope="module")
def prepared() -> Model:
    return prepare(load(network()))


class TestPreparing:
    def test_changes_nothing_that_is_computed(self, prepared: Model) -> None:
        assert error(prepared, network()) < 1e-6

    @pytest.mark.parametrize("opset", [9, 11, 13, 17])
    def test_raises_the_opset_only_where_it_must(self, opset: int) -> None:
        model = load(conv_model(opset=opset))
        made = prepare(model)
        assert made.opset == max(opset, 13)
        feeds = {"x": noise(2, 4, 9, 10)}
        assert difference(run(made, feeds)[0], run(model, feeds)[0]) < 1e-6

    def test_names_nodes_without_a_name(self) -> None:
        proto = network()
        for node in proto.graph.node:
            node.name = "Conv_0" if node.op_type == "Relu" else ""
        names = [node.name for node in prepare(load(proto)).proto.graph.node]
        assert all(names)
        assert len(set(names)) == len(names) - 1, "the two that had one keep it"

    def test_weights_with_a_default_are_no_inputs_any_more(self) -> None:
        proto = conv_model(ir_version=3, opset=9)
        for tensor in proto.graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(value)
        assert [each.name for each in prepare(load(proto)).proto.graph.input] == ["x"]

    def test_keeps_what_a_model_says_of_itself(self) -> None:
        proto = network()
        proto.doc_string, proto.producer_name, proto.model_version = "said", "someone", 7
        proto.metadata_props.add(key="note", value="kept")
        made = prepare(load(proto)).proto
        assert (made.doc_string, made.producer_name, made.model_version) == ("said", "someone", 7)
        assert {"note": "kept"}.items() <= {p.key: p.value for p in made.metadata_props}.items()


class TestQuantizing:
    @pytest.mark.parametrize("method", METHODS)
    def test_stays_close(self, prepared: Model, method: str) -> None:
        ranges = calibrate(prepared, samples(), method)
        made = quantize(prepared, ranges)
        onnx.checker.check_model(made.proto, full_check=True)
        assert error(made, network()) < INT8

    def test_weights_are_eight_bits_and_the_interface_is_float(self, prepared: Model) -> None:
        made = quantize(prepared, calibrate(prepared, samples()))
        weights = [
            name for name, value in initializers(made.proto).items() if value.dtype == np.int8
        ]
        assert len(weights) >= 4
        for before, after in ((network().graph.input, made.proto.graph.input),
                              (network().graph.output, made.proto.graph.output)):  # fmt: skip
            assert [each.name for each in before] == [each.name for each in after]
            assert {each.type.tensor_type.elem_type for each in after} == {onnx.TensorProto.FLOAT}

    @pytest.mark.parametrize(("keep", "float_layers"), [("one/0", 1), ("one/*", 2), ("*", 4)])
    def test_what_is_kept_is_float(self, prepared: Model, keep: str, float_layers: int) -> None:
        made = quantize(prepared, assumed(prepared), keep=[keep])
        constants = initializers(made.proto)
        layers = [node for node in made.proto.graph.node if node.op_type == "Conv"]
        assert sum(node.input[1] in constants for node in layers) == float_layers

    @pytest.mark.parametrize(
        ("keep", "rounded"),
        [(("one/1", "two/0"), False), (("one/1",), True), (("two/0",), True)],
    )
    def test_what_lies_between_layers_in_float_is_float(
        self, prepared: Model, keep: tuple[str, ...], rounded: bool
    ) -> None:
        graph = quantize(prepared, assumed(prepared), keep=keep).proto.graph
        makers = {name: node for node in graph.node for name in node.output}
        (node,) = (each for each in graph.node if each.name == "two/0")
        passed = list[str]()
        while (node := makers[node.input[0]]).name != "one/1":
            passed.append(node.op_type)
        assert ("QuantizeLinear" in passed) == rounded

    def test_where_all_layers_are_float_nothing_is_rounded(self, prepared: Model) -> None:
        made = quantize(prepared, assumed(prepared), keep=("*/0", "*/1"))
        assert operators(made.proto) == operators(prepared.proto)

    def test_seven_bits_where_asked_for(self, prepared: Model) -> None:
        for reduce, most in ((False, 127), (True, 64)):
            made = quantize(prepared, assumed(prepared), reduce_range=reduce)
            values = [
                v for v in initializers(made.proto).values() if v.dtype == np.int8 and v.size > 1
            ]
            assert max(int(np.abs(value.astype(int)).max()) for value in values) == most

    def test_a_missing_range_is_a_sentence(self, prepared: Model) -> None:
        with pytest.raises(ModelError, match=r"cannot be quantized: .*"):
            quantize(prepared, {})


class TestTelling:
    def test_a_quantized_network(self, prepared: Model) -> None:
        assert not is_quantized(prepared)
        assert is_quantized(quantize(prepared, assumed(prepared)))

    @pytest.mark.parametrize("op", ["QLinearConv", "ConvInteger", "DynamicQuantizeLinear"])
    def test_operators_of_integers(self, op: str) -> None:
        assert is_quantized(
            load(model_of([helper.make_node(op, ["x"], ["y"])], inputs={"x": (1,)}))
        )

    def test_activations_are_the_float_tensors_between(self, prepared: Model) -> None:
        found = activations(prepared)
        assert {"image", "y"} <= set(found)
        assert not set(found) & initializers(prepared.proto).keys()
        assert set(assumed(prepared)) == set(found)


class TestRanges:
    def test_are_those_of_the_samples(self, prepared: Model) -> None:
        batches = samples()
        found = calibrate(prepared, batches)
        made = outputs(prepared, batches)
        assert found["y"] == pytest.approx((0.0, made.max()), abs=1e-5)
        values = np.concatenate([each["image"] for each in batches])
        assert found["image"] == pytest.approx((values.min(), values.max()), abs=1e-6)

    def test_percentiles_cut_what_is_rare(self, prepared: Model) -> None:
        batches = samples(256)
        batches[0]["image"][0, 0, 0, 0] = 1e3
        assert calibrate(prepared, batches, "percentile")["image"][1] < 100
        assert calibrate(prepared, batches, "minmax")["image"][1] == pytest.approx(1e3)

    def test_samples_that_do_not_fit_are_a_sentence(self, prepared: Model) -> None:
        with pytest.raises(ModelError, match=r"cannot be calibrated: .*"):
            calibrate(prepared, [{"image": noise(1, 4, 8, 8)}])

    def test_nothing_is_printed(self, prepared: Model, capfd: pytest.CaptureFixture[str]) -> None:
        quantize(prepared, calibrate(prepared, samples(), "entropy"))
        assert capfd.readouterr() == ("", "")

    def test_operators_are_left_in_order(self, prepared: Model) -> None:
        kinds = operators(quantize(prepared, assumed(prepared)).proto)
        assert kinds.count("Conv") == 4
        assert "Softmax" not in kinds
