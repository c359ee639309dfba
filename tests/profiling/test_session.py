from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from onnxcp.errors import ModelError, ProviderError
from onnxcp.profiling import session as session_module
from onnxcp.profiling.session import Runner, infer, open_session


def model(graph: str, *, opset: int = 17) -> bytes:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> {graph}'
    return parser.parse_model(text).SerializeToString()


DOUBLE = "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Add(x, x) z = Neg(x) }"
MATMUL = "g (float[N,3] x, float[M,4] w) => (float[N,4] y) { y = MatMul(x, w) }"


def test_opens_files_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(DOUBLE))
    for source in (path, str(path), path.read_bytes()):
        (y, z) = infer(open_session(source), {"x": np.ones((2, 3), np.float32)})
        np.testing.assert_array_equal(y, np.full((2, 3), 2, np.float32))
        np.testing.assert_array_equal(z, np.full((2, 3), -1, np.float32))


def test_options() -> None:
    session = open_session(model(DOUBLE), intra_op_num_threads=1)
    options = session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_profile(tmp_path: Path) -> None:
    session = open_session(model(DOUBLE), profile_prefix=tmp_path / "p")
    assert Path(session.end_profiling()).parent == tmp_path


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "No graph was found in the protobuf"),
        (model(DOUBLE)[:-20], "Failed to load model because protobuf parsing failed"),
        (
            model("g (float[N] x) => (float[N] y) { y = Nonsense(x) }"),
            "This is an invalid model.*No Op registered for Nonsense",
        ),
        (
            model("g (float[N] x) => (float[N] y) { z = Neg(x) }"),
            r"This is an invalid model. Graph output \(y\) does not exist in the graph",
        ),
        (
            model(DOUBLE, opset=99),
            r"ONNX Runtime only \*guarantees\* support .* \[\.\.\.\]",
        ),
    ],
)
def test_load_errors_are_one_sentence(
    source: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        ModelError, match=f"^ONNX Runtime cannot load 'resnet': {reason}[^\n]*\\.$"
    ) as caught:
        open_session(source, label="'resnet'")
    assert len(str(caught.value)) < 320
    assert "onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.onnx"
    with pytest.raises(ModelError) as caught:
        open_session(path)
    assert str(caught.value) == f"ONNX Runtime cannot load '{path}': File doesn't exist."


@pytest.mark.parametrize(
    ("feeds", "reason"),
    [
        ({"x": (2, 3), "w": (2, 4)}, "Non-zero status code returned while running MatMul node"),
        ({"x": (2, 3)}, "Required inputs"),
        ({"x": (2, 5), "w": (3, 4)}, "Got invalid dimensions for input: x"),
    ],
)
def test_run_errors_are_one_sentence(
    feeds: dict[str, tuple[int, ...]], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_session(model(MATMUL))
    arrays = {name: np.ones(shape, np.float32) for name, shape in feeds.items()}
    match = f"^ONNX Runtime cannot run 'net': {reason}[^\n]*\\.$"
    with pytest.raises(ModelError, match=match):
        infer(session, arrays, label="'net'")
    with pytest.raises(ModelError, match=match):
        Runner(session, arrays, label="'net'").run()
    assert capfd.readouterr() == ("", "")


def test_provider_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        session_module,
        "resolve_providers",
        lambda _: ("CUDAExecutionProvider", "CPUExecutionProvider"),
    )
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ProviderError, match="has the provider 'cuda' but cannot start it"),
    ):
        open_session(model(DOUBLE), providers=["cuda"])


@pytest.mark.parametrize("bound", [False, True])
def test_runner(bound: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if bound:
        # Binding works on any memory, that of the host included.
        monkeypatch.setitem(session_module._DEVICES, "CPUExecutionProvider", "cpu")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    runner = Runner(open_session(model(DOUBLE)), {"x": x})
    assert (runner._binding is not None) == bound
    for _ in range(2):
        runner.run()
    y, z = runner.outputs()
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(z, -x)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN"])
def test_types_foreign_to_numpy(bound: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bound:
        monkeypatch.setitem(session_module._DEVICES, "CPUExecutionProvider", "cpu")
    number = onnx.TensorProto.DataType.Value(kind)
    dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(number)
    cast = model(f"g ({kind.lower()}[N] x) => (float[N] y) {{ y = Cast <to = 1> (x) }}", opset=19)
    runner = Runner(open_session(cast), {"x": np.array([0.5, -2.0]).astype(dtype)})
    runner.run()
    np.testing.assert_array_equal(runner.outputs()[0], np.array([0.5, -2.0], np.float32))


def test_strings_are_never_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session_module._DEVICES, "CPUExecutionProvider", "cpu")
    session = open_session(model("g (string[N] x) => (string[N] y) { y = Identity(x) }"))
    runner = Runner(session, {"x": np.array(["a", ""], dtype=object)})
    assert runner._binding is None
    runner.run()
    assert runner.outputs()[0].tolist() == ["a", ""]


def test_every_status_of_onnx_runtime_is_known() -> None:
    assert ort.capi.onnxruntime_pybind11_state.InvalidGraph in session_module._ORT_ERRORS


@pytest.mark.parametrize("bound", [False, True])
def test_runs_with_copies(bound: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if bound:
        monkeypatch.setitem(session_module._DEVICES, "CPUExecutionProvider", "cpu")
    session = open_session(model(DOUBLE))
    runner = Runner(session, {"x": np.ones((2, 3), np.float32)}, label="'net'")
    assert runner.on_device == bound
    runner.run_with_copies()
    wrong = Runner(session, {"x": np.ones((2, 3), np.float32)}, label="'net'")
    wrong._feeds = {}
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run 'net': "):
        wrong.run_with_copies()


@pytest.mark.parametrize(("name", "times"), [("cuda", 1), ("tensorrt", 1), ("openvino", 0)])
def test_libraries_of_cuda_are_loaded_ahead(
    name: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have come as Python packages, where no linker looks."""
    loaded: list[object] = []
    monkeypatch.setattr(session_module.installation, "preload", loaded.append)
    monkeypatch.setattr(ort, "get_available_providers", ort.get_all_providers)
    with pytest.warns(UserWarning, match="ExecutionProvider"), pytest.raises(ProviderError):
        open_session(model(DOUBLE), providers=[name])
    assert len(loaded) == times
