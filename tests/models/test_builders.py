"""The reference networks: known sizes, valid graphs, and outputs that depend on their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest

from models import alexnet, command_line, conv3d, keywords, mobilenet, resnet, unet, vgg
from models.builder import GraphBuilder
from models.weightless import weightless

Build = Callable[..., onnx.ModelProto]

# Parameters, exactly, and MACs in thousandths of 10^9 with the precision of the source.
# AlexNet: the Caffe model zoo's bvlc_alexnet; Sze et al., "Efficient Processing of Deep Neural
# Networks" (2017), table II. The others: pytorch.org/vision/stable/models, "num_params", "GFLOPS".
PUBLISHED = [
    pytest.param(alexnet.build, {}, 60_965_224, 724, 1, id="alexnet"),
    pytest.param(vgg.build, {}, 138_357_544, 15_470, 10, id="vgg16"),
    pytest.param(vgg.build, {"depth": 19}, 143_667_240, 19_630, 10, id="vgg19"),
    pytest.param(resnet.build, {"depth": 18}, 11_689_512, 1_810, 10, id="resnet18"),
    pytest.param(resnet.build, {"depth": 50}, 25_557_032, 4_090, 10, id="resnet50"),
    pytest.param(mobilenet.build, {}, 3_504_872, 300, 10, id="mobilenet_v2"),
]


@dataclass(frozen=True)
class Small:
    """A small variant of a network, and the shapes of a sample and of its output."""

    build: Build
    options: dict[str, int | float]
    sample: tuple[int, ...]
    result: tuple[int, ...]

    def model(self, *, batch: int | str = 1, seed: int = 0) -> onnx.ModelProto:
        return self.build(batch=batch, seed=seed, **self.options)


SMALL = {
    "alexnet": Small(alexnet.build, {"width": 12, "size": 67}, (3, 67, 67), (1000,)),
    "vgg16": Small(vgg.build, {"width": 8, "size": 32}, (3, 32, 32), (1000,)),
    "resnet18": Small(resnet.build, {"width": 8, "size": 32}, (3, 32, 32), (1000,)),
    "resnet50": Small(
        resnet.build, {"depth": 50, "width": 8, "size": 64, "classes": 10}, (3, 64, 64), (10,)
    ),
    "mobilenet_v2": Small(
        mobilenet.build, {"width": 0.25, "size": 64, "classes": 10}, (3, 64, 64), (10,)
    ),
    "unet": Small(
        unet.build, {"width": 4, "size": 32, "channels": 3, "classes": 5}, (3, 32, 32), (5, 32, 32)
    ),
    "keywords-waveform": Small(keywords.build, {}, (1, 16000), (12,)),
    "keywords-features": Small(keywords.build, {"waveform": False, "size": 101}, (40, 101), (12,)),
    "c3d": Small(conv3d.build, {"width": 4, "size": 32}, (3, 16, 32, 32), (101,)),
}


def run(model: onnx.ModelProto, *arrays: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    return session.run(None, feeds)[0]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def count_parameters(model: onnx.ModelProto) -> int:
    """All float weights but the running statistics, which frameworks do not call parameters."""
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.dims and not tensor.name.endswith((".mean", ".var"))
    )


def count_macs(model: onnx.ModelProto) -> int:
    """Products that each output value sums, times the output values, by inferred shapes."""
    graph = onnx.shape_inference.infer_shapes(weightless(model)).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    return sum(
        math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        for node in graph.node
        if node.op_type in ("Conv", "Gemm")
    )


@pytest.mark.parametrize(("build", "options", "parameters", "mega_macs", "precision"), PUBLISHED)
def test_has_the_published_size(
    build: Build, options: dict, parameters: int, mega_macs: int, precision: int
) -> None:
    model = build(**options)
    assert count_parameters(model) == parameters
    assert round(count_macs(model) / 1e6 / precision) * precision == mega_macs


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL.keys())
class TestEveryNetwork:
    def test_is_valid_onnx(self, small: Small) -> None:
        model = small.model()
        onnx.checker.check_model(model, full_check=True)
        assert (model.opset_import[0].version, model.ir_version) == (17, 8)
        assert model.producer_name == "onnxcp models"

    def test_takes_and_gives_the_declared_shapes(self, small: Small) -> None:
        model = small.model(batch=2)
        declared = [
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*model.graph.input, *model.graph.output)
        ]
        assert declared == [(2, *small.sample), (2, *small.result)]
        assert run(model, noise(2, *small.sample)).shape == (2, *small.result)

    def test_keeps_activations_in_range(self, small: Small) -> None:
        outputs = run(small.model(batch=4), noise(4, *small.sample))
        assert np.isfinite(outputs).all()
        assert 0.01 < outputs.std() < 10

    def test_depends_on_its_input(self, small: Small) -> None:
        """Random networks without centred filters give much the same output for any input."""
        outputs = run(small.model(batch=4), noise(4, *small.sample)).reshape(4, -1)
        between = np.linalg.norm(outputs - outputs.mean(axis=0))
        assert between > 0.2 * np.linalg.norm(outputs)

    def test_treats_the_samples_of_a_dynamic_batch_alike(self, small: Small) -> None:
        model = small.model(batch="N")
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "N"
        inputs = noise(3, *small.sample)
        together = run(model, inputs)
        # Only the order of float32 sums may differ: a few dozen layers of relative rounding.
        atol = 1e-5 * np.abs(together).max()
        for index in range(3):
            alone = run(model, inputs[index : index + 1])
            np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=atol)

    def test_is_determined_by_its_seed(self, small: Small) -> None:
        first = small.model(seed=3).SerializeToString()
        assert small.model(seed=3).SerializeToString() == first
        assert small.model(seed=4).SerializeToString() != first


def test_the_networks_cover_the_geometries() -> None:
    def of(model: onnx.ModelProto, op: str) -> list[dict]:
        return [
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            for node in model.graph.node
            if node.op_type == op
        ]

    grouped = alexnet.build(width=6, size=67)
    assert [conv["group"] for conv in of(grouped, "Conv")] == [1, 2, 1, 2, 2]
    assert len(of(grouped, "LRN")) == 2
    assert any(conv["dilations"] == [4] for conv in of(keywords.build(), "Conv"))
    assert of(keywords.build(), "Conv")[0]["strides"] == [160]
    assert of(unet.build(levels=2), "ConvTranspose")[0]["kernel_shape"] == [2, 2]
    assert of(conv3d.build(width=1), "Conv")[0]["kernel_shape"] == [3, 3, 3]
    bottleneck = of(resnet.build(depth=50, width=2), "Conv")
    assert {tuple(c["kernel_shape"]) for c in bottleneck if c["strides"] == [2, 2]} == {
        (1, 1),
        (3, 3),
        (7, 7),
    }


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (alexnet.build, {"width": 10}, "width must be a multiple of 6, not 10"),
        (resnet.build, {"depth": 34}, "depth must be one of [18, 50], not 34"),
        (unet.build, {"size": 20}, "size must be a multiple of 8, not 20"),
    ],
)
def test_refuses_sizes_it_cannot_have(build: Build, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        build(**options)


class TestCommandLine:
    def test_saves_what_the_options_say(self, tmp_path, capsys) -> None:
        path = tmp_path / "small.onnx"
        options = ["--width", "0.25", "--size", "32", "--batch", "N", "--seed", "7"]
        command_line.main(mobilenet.build, [*options, "-o", str(path)])
        expected = mobilenet.build(width=0.25, size=32, batch="N", seed=7)
        assert path.read_bytes() == expected.SerializeToString()
        assert str(path) in capsys.readouterr().out

    def test_prints_parameters_and_macs(self, capsys) -> None:
        options = {"width": 4, "size": 32, "classes": 10}
        command_line.main(vgg.build, [f"--{name}={value}" for name, value in options.items()])
        model = vgg.build(**options)
        expected = f"vgg16: {count_parameters(model):,} parameters, {count_macs(model):,} MACs\n"
        assert capsys.readouterr().out == expected

    def test_has_switches(self, capsys) -> None:
        command_line.main(keywords.build, ["--no-waveform", "--size", "101"])
        assert "148,508 parameters" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "build",
        [m.build for m in (alexnet, vgg, resnet, mobilenet, unet, keywords, conv3d)],
        ids=lambda build: build.__module__,
    )
    def test_explains_every_option(self, build: Build, capsys) -> None:
        with pytest.raises(SystemExit, match="0"):
            command_line.main(build, ["--help"])
        assert "Seeds the random weights. (default: 0)" in capsys.readouterr().out

    def test_says_what_is_wrong_in_a_sentence(self, capsys) -> None:
        with pytest.raises(SystemExit, match="2"):
            command_line.main(unet.build, ["--size", "33"])
        assert "size must be a multiple of 8, not 33" in capsys.readouterr().err


class TestGraphBuilder:
    @pytest.mark.parametrize("rank", [1, 2, 3])
    @pytest.mark.parametrize(
        ("options", "size"),
        [
            ({}, 10),
            ({"pads": 1}, 12),
            ({"strides": 2, "pads": 1}, 6),
            ({"dilations": 2, "pads": 2}, 12),
            ({"group": 2, "bias": False}, 10),
        ],
        ids=str,
    )
    def test_conv_broadcasts_over_the_axes(self, rank: int, options: dict, size: int) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (1, 4, *[12] * rank))
        y = net.conv(x, 4, 6, (3,) * rank, name="y", **options)
        assert run(net.model([y]), noise(1, 4, *[12] * rank)).shape == (1, 6, *[size] * rank)

    def test_pads_may_differ_at_begin_and_end(self) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (1, 1, 8, 8))
        y = net.conv(x, 1, 1, 3, name="y", pads=(0, 1, 2, 3))
        assert run(net.model([y]), noise(1, 1, 8, 8)).shape == (1, 1, 8, 10)

    def test_conv_transpose(self) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (1, 4, 5, 5))
        y = net.conv_transpose(x, 4, 6, 3, name="y", strides=2, pads=1, output_padding=1, group=2)
        assert run(net.model([y]), noise(1, 4, 5, 5)).shape == (1, 6, 10, 10)

    def test_given_weights_are_used(self) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (2, 3))
        weight, bias = noise(4, 3), noise(4)
        y = net.gemm(x, 3, 4, name="y", weight=weight, bias=bias)
        inputs = noise(2, 3)
        np.testing.assert_allclose(
            run(net.model([y]), inputs), inputs @ weight.T + bias, rtol=1e-5, atol=1e-6
        )

    def test_given_weights_must_fit(self) -> None:
        net = GraphBuilder("net")
        with pytest.raises(ValueError, match=r"y: the weight has shape \(4, 3\), not \(3, 4\)"):
            net.gemm(net.input("x", (2, 4)), 4, 3, name="y", weight=noise(4, 3))

    def test_given_statistics_are_used(self) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (2, 1))
        scale, bias, mean, variance = (np.array([value]) for value in (2.0, 1.0, 3.0, 4.0))
        y = net.batch_norm(x, 1, name="y", epsilon=0.0, statistics=(scale, bias, mean, variance))
        outputs = run(net.model([y]), np.array([[3.0], [5.0]], np.float32))
        np.testing.assert_allclose(outputs, [[1.0], [3.0]], rtol=1e-6)

    @pytest.mark.parametrize("rectified", [False, True])
    @pytest.mark.parametrize("group", [1, 2, 256])
    def test_random_weights_keep_the_scale(self, rectified: bool, group: int) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (1, 256, 18, 18))
        y = net.conv(x, 256, 256, 3, name="y", group=group, bias=False, rectified=rectified)
        inputs = noise(1, 256, 18, 18)
        outputs = run(net.model([y]), np.maximum(inputs, 0) if rectified else inputs)
        assert outputs.std() == pytest.approx(1.0, abs=0.1)

    def test_chains_the_small_operators(self) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (1, 4, 9, 9))
        low, high = net.clip(x, -0.5, 0.5), net.relu(x)
        pooled = [
            net.max_pool(low, 2, name="max", ceil_mode=True),
            net.average_pool(high, 3, name="average", strides=2, pads=1),
        ]
        y = net.concat([*pooled, net.add(*pooled, name="sum")], name="concat")
        y = net.softmax(net.reshape(y, (0, 3, -1), name="reshape"), name="softmax")
        mean = net.global_average_pool(x, name="mean")
        model = net.model([y, net.flatten(mean)], doc_string="small")
        assert model.doc_string == "small"
        assert [output.name for output in model.graph.output] == ["softmax", "mean.flatten"]
        outputs = run(model, noise(1, 4, 9, 9))
        assert outputs.shape == (1, 3, 100)
        np.testing.assert_allclose(outputs.sum(axis=-1), 1.0, rtol=1e-5)

    def test_a_graph_whose_shapes_clash_is_refused(self) -> None:
        net = GraphBuilder("net")
        y = net.add(net.input("a", (1, 3)), net.input("b", (1, 4)), name="y")
        with pytest.raises(onnx.shape_inference.InferenceError):
            net.model([y])

    def test_a_name_given_twice_is_refused(self) -> None:
        net = GraphBuilder("net")
        x = net.input("x", (1, 3))
        net.relu(x, name="y")
        with pytest.raises(onnx.checker.ValidationError, match="y"):
            net.model([net.relu(x, name="y")])
