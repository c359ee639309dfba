"""The contract of a pass, the manager that runs passes, and how passes are found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper
from onnxcp_passes.channel_svd import ChannelSvd
from onnxcp_passes.fold_batchnorm import FoldBatchNorm

from onnxcp.errors import ModelError, PassError
from onnxcp.graph.edit import edit
from onnxcp.graph.model import Model, load
from onnxcp.passes import Context, Pass, PassManager, PassResult, find_pass, registered_passes
from tests.networks import conv_model, model_of, noise, operators

BUILT_IN = {
    "channel-svd",
    "coupled-tensor-train",
    "cp3",
    "cp4",
    "fold-batchnorm",
    "output-first-svd",
    "sparse-low-rank",
    "spatial-svd",
    "tensor-train",
    "tucker2",
}


@dataclass(frozen=True)
class Rename(Pass):
    """Renames the first node; what it does besides is given."""

    to: str = "renamed"

    name = "rename"
    summary = "another name"

    def run(self, model: Model, context: Context) -> PassResult:
        context.progress(f"renaming to {self.to}")

        def change(graph: gs.Graph) -> None:
            graph.nodes[0].name = self.to

        return PassResult(edit(model, change), changed=True, notes=(f"now {self.to}",))


@dataclass(frozen=True)
class Fail(Pass):
    name = "fail"
    summary = "fails"

    def run(self, model: Model, context: Context) -> PassResult:
        raise ERRORS[0]


@dataclass(frozen=True)
class Break(Pass):
    """Makes the first node read a tensor that there is not."""

    changed: bool = True

    name = "break"
    summary = "leaves an invalid graph"

    def run(self, model: Model, context: Context) -> PassResult:
        def change(graph: gs.Graph) -> None:
            graph.nodes[0].inputs[0] = gs.Variable("nowhere")

        return PassResult(edit(model, change), changed=self.changed)


ERRORS: list[BaseException] = []


class TestManager:
    def test_passes_run_in_order_and_each_gets_the_last_one_s_model(self) -> None:
        model = load(conv_model())
        result, records = PassManager([Rename("a"), Rename("b")]).run(model)
        assert result.proto.graph.node[0].name == "b"
        assert model.proto.graph.node[0].name == "conv"
        assert [record.text for record in records] == ['rename{to="a"}', 'rename{to="b"}']
        assert [record.notes for record in records] == [("now a",), ("now b",)]
        assert all(record.changed and record.seconds > 0 for record in records)

    def test_no_passes_change_nothing(self) -> None:
        model = load(conv_model())
        assert PassManager([]).run(model) == (model, ())

    def test_a_pass_that_finds_nothing_to_do_says_so(self) -> None:
        model = load(conv_model())
        result, (record,) = PassManager([FoldBatchNorm()]).run(model)
        assert result is model
        assert not record.changed

    def test_progress_is_passed_on(self) -> None:
        heard: list[str] = []
        PassManager([Rename("a")]).run(load(conv_model()), Context(progress=heard.append))
        assert heard == ["renaming to a"]

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (ModelError("The model is odd."), "Pass fail: The model is odd."),
            (ValueError("two\nlines."), "Pass fail failed: ValueError: two."),
            (RuntimeError(), "Pass fail failed: RuntimeError."),
            (KeyError("x"), "Pass fail failed: KeyError: 'x'."),
        ],
    )
    def test_an_error_names_the_pass_and_keeps_its_cause(
        self, error: Exception, sentence: str
    ) -> None:
        ERRORS[:] = [error]
        with pytest.raises(PassError) as caught:
            PassManager([Rename("a"), Fail()]).run(load(conv_model()))
        assert str(caught.value) == sentence
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit(1)])
    def test_what_is_no_fault_of_a_pass_goes_through(self, error: BaseException) -> None:
        ERRORS[:] = [error]
        with pytest.raises(type(error)) as caught:
            PassManager([Fail()]).run(load(conv_model()))
        assert caught.value is error

    def test_a_pass_that_leaves_an_invalid_graph_is_blamed(self) -> None:
        with pytest.raises(PassError) as caught:
            PassManager([Rename("a"), Break()]).run(load(conv_model()))
        message = str(caught.value)
        assert message.startswith("Pass break: the rewritten graph is not valid ONNX: ")
        assert "\n" not in message

    def test_a_pass_that_changed_nothing_is_not_checked(self) -> None:
        PassManager([Break(changed=False)]).run(load(conv_model()))

    def test_no_pass_is_blamed_for_a_model_that_was_not_valid(self) -> None:
        """ONNX Runtime runs graphs that onnx finds fault with; here, of unknown operators."""
        proto = conv_model()
        proto.graph.node.append(helper.make_node("Unheard", ["y"], ["z"]))
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(proto)
        result, _ = PassManager([Rename("a")]).run(load(proto))
        assert result.proto.graph.node[0].name == "a"

    def test_models_of_any_size_are_checked(self) -> None:
        """The checker takes no more than 2 GB; weights, which it does not look at, stay away."""
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        model = load(model_of(nodes, inputs={"x": (1, 1024)}, weights={"w": noise(1024, 8)}))
        with pytest.raises(PassError, match="not valid"):
            PassManager([Break()]).run(model)


class TestContract:
    def test_a_pass_is_frozen_and_equal_by_its_options(self) -> None:
        with pytest.raises(FrozenInstanceError):
            FoldBatchNorm().name = "x"  # type: ignore[misc]
        assert ChannelSvd(rank=1) == ChannelSvd(rank=1) != ChannelSvd(rank=2)

    def test_options_are_those_off_their_defaults(self) -> None:
        assert ChannelSvd().options() == {}
        assert ChannelSvd(nodes="a", rank=3).options() == {"rank": 3, "nodes": "a"}

    @pytest.mark.parametrize("kind", registered_passes().values())
    def test_every_pass_says_in_a_line_what_it_does(self, kind: type[Pass]) -> None:
        assert kind.summary
        assert "\n" not in kind.summary
        assert kind.__doc__


def test_the_built_in_passes_are_registered_in_alphabetical_order() -> None:
    names = list(registered_passes())
    assert set(names) >= BUILT_IN
    assert names == sorted(names)
    assert all(kind.name == name for name, kind in registered_passes().items())
    assert find_pass("fold-batchnorm") is FoldBatchNorm


PLUGIN = Path(__file__).parent / "plugin"

RUN_PLUGIN = """
import sys
from onnxcp.errors import OnnxcpError
from onnxcp.graph.model import load, save
from onnxcp.passes import PassManager, registered_passes
from onnxcp.pipeline import parse_pipeline
try:
    print(*registered_passes())
    passes = parse_pipeline(sys.argv[1])
    assert parse_pipeline(",".join(map(str, passes))) == passes
    model, records = PassManager(passes).run(load(sys.argv[2]))
    save(model, sys.argv[3])
    print(*(note for record in records for note in record.notes), sep="; ")
except OnnxcpError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the third party's package, as its users would, and return where."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site)]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    subprocess.run([*command, str(PLUGIN)], check=True, capture_output=True, text=True)
    return site


def in_its_presence(site: Path, *arguments: str | Path) -> list[str]:
    """Run `RUN_PLUGIN` where the packages in `site` are installed too; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_PLUGIN, *arguments],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def fake_package(site: Path, name: str, entry: str, source: str = "") -> None:
    """Lay down a package as an installer would, with one entry point."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[onnxcp.passes]\n{entry}\n")


class TestThirdParties:
    def test_a_pass_is_found_parsed_run_and_recorded(self, plugin: Path, tmp_path: Path) -> None:
        source, result = tmp_path / "in.onnx", tmp_path / "out.onnx"
        onnx.save(conv_model(), source)
        text = "round-weights{step=0.25,limit=1},channel-svd{rank=2}"
        names, notes = in_its_presence(plugin, text, source, result)
        assert set(names.split()) >= BUILT_IN | {"round-weights"}
        assert notes.startswith("conv: rounded to 0.25; conv: channel-svd rank 2, weight error ")
        assert operators(onnx.load(result)) == ["Conv", "Conv"]

    def test_its_options_are_checked_like_any_other(self, plugin: Path) -> None:
        _, error = in_its_presence(plugin, "round-weights{step=0}", "", "")
        assert error == "PassError: Option 'step' of pass 'round-weights' is 0.0, not above 0."
        _, error = in_its_presence(plugin, "round-weights{limit=x}", "", "")
        assert error == (
            "PassError: Option 'limit' of pass 'round-weights' takes an int or none, not \"x\"."
        )

    @pytest.mark.parametrize(
        ("entry", "source", "sentence"),
        [
            (
                "bad = bad_pass:Bad",
                "import a_package_that_there_is_not",
                "Pass 'bad' of package 'bad-pass' cannot be imported: "
                "ModuleNotFoundError: No module named 'a_package_that_there_is_not'.",
            ),
            (
                "bad = bad_pass:Bad",
                "",
                "Pass 'bad' of package 'bad-pass' cannot be imported: "
                "AttributeError: module 'bad_pass' has no attribute 'Bad'.",
            ),
            (
                "bad = bad_pass:Bad",
                "raise RuntimeError",
                "Pass 'bad' of package 'bad-pass' cannot be imported: RuntimeError.",
            ),
            (
                "bad = bad_pass:Bad",
                "class Bad: pass",
                "'bad_pass:Bad' of package 'bad-pass' is not a concrete subclass of onnxcp.Pass.",
            ),
            (
                "bad = bad_pass:Bad",
                "from onnxcp.passes import Pass as Bad",
                "'bad_pass:Bad' of package 'bad-pass' is not a concrete subclass of onnxcp.Pass.",
            ),
            (
                "bad = bad_pass:Bad",
                "from onnxcp_passes.cp import Cp3 as Bad",
                "Pass 'bad' of package 'bad-pass' has another name on its class.",
            ),
            (
                "cp3 = bad_pass:Bad",
                "",
                "Pass 'cp3' comes from 'bad-pass' and 'onnxcp'; uninstall all but one of them.",
            ),
        ],
    )
    def test_a_broken_one_is_named_with_its_package(
        self, entry: str, source: str, sentence: str, tmp_path: Path
    ) -> None:
        fake_package(tmp_path, "bad-pass", entry, source)
        assert in_its_presence(tmp_path, "cp3", "", "") == [f"PassError: {sentence}"]

    def test_a_broken_one_is_in_nobody_s_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_package(tmp_path, "bad-pass", "bad = bad_pass:Bad", "import nothing_of_the_kind")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert find_pass("cp3").name == "cp3"
        with pytest.raises(PassError, match="'bad-pass'"):
            find_pass("bad")
