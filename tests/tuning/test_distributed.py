"""The module in the wrappers of PyTorch, and training in two processes, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from onnxcp.graph.model import load
from onnxcp.tuning import finetune, to_torch
from tests.networks import initializers
from tests.tuning.students import QUICK, data, student, teacher, tuned, with_idle_weights

PROGRAM = """
import sys
from pathlib import Path
from onnxcp.graph.model import save
from onnxcp.tuning import finetune
from tests.tuning.students import QUICK, data, teacher, with_idle_weights
from dataclasses import replace
from onnxcp.tuning.team import is_first

folder = Path(sys.argv[1])
settings = replace(QUICK, checkpoint=folder / "c")
result = finetune(with_idle_weights(), teacher(), data(), settings)
assert is_first() == (int(__import__("os").environ["RANK"]) == 0)
save(result.model, folder / f"{__import__('os').environ['RANK']}.onnx")
print(result.before.loss, result.after.loss)
"""


@pytest.fixture
def group() -> Iterator[None]:
    """This process as the only one of its group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel_on_the_cpu_computes_the_same() -> None:
    module, x = to_torch(teacher()), torch.from_numpy(data(8)["x"])
    assert torch.equal(nn.DataParallel(module)(x), module(x))


@pytest.mark.usefixtures("group")
def test_distributed_data_parallel_passes_over_what_a_loss_does_not_reach() -> None:
    """As PyTorch offers it; to wait for gradients that never come would fail in the second step."""
    module, x = to_torch(with_idle_weights()), torch.from_numpy(data(8)["x"])
    wrapped = nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
    for _ in range(2):
        wrapped(x).square().sum().backward()
    assert [n for n, weight in module.named_parameters() if weight.grad is None] == ["idle"]


@pytest.mark.usefixtures("group")
def test_distributed_data_parallel_trains_the_same() -> None:
    plain, wrapped = to_torch(student()), to_torch(student())
    x = torch.from_numpy(data(8)["x"])
    plain(x).square().sum().backward()
    nn.parallel.DistributedDataParallel(wrapped)(x).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), wrapped.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad)


def launched(folder: Path) -> list[str]:
    """Run the program in two processes, as `accelerate launch` does; return what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(folder)],
                env={**os.environ, **place},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return outputs


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    """Weights that have no gradient, which processes would wait for, are among them."""
    outputs = launched(tmp_path)
    assert outputs[0] == outputs[1]
    one, other = (load(tmp_path / f"{rank}.onnx") for rank in "01")
    assert one.proto == other.proto
    before, after = map(float, outputs[0].split())
    assert after < before
    # About what one process makes of the same batches: its sums are of another order.
    alone = tuned()
    assert before == pytest.approx(alone.before.loss, rel=1e-5)
    assert after == pytest.approx(alone.after.loss, rel=0.2)
    start, found, trained = (initializers(each.proto) for each in (student(), one, alone.model))
    moved = np.linalg.norm(trained["d"] - start["d"])
    assert np.linalg.norm(found["d"] - trained["d"]) < 0.5 * moved


def test_a_batch_is_dealt_out_evenly() -> None:
    from onnxcp.calibration.data import load_data
    from onnxcp.profiling.inputs import session_inputs
    from onnxcp.profiling.machine import Machine
    from onnxcp.tuning.samples import Samples

    whole = load_data(data(83), session_inputs(Machine().open(load(teacher()))))
    samples = Samples.of(whole, 0.1, 0)
    rng = np.random.default_rng(0)
    places = samples.batches(samples.trained, 16, rng, among=4)
    assert all(len(each.rows) % 4 == 0 for each in places)
    rows = np.concatenate([each.rows for each in places])
    assert len(np.unique(rows)) == len(rows) == 4 * (len(samples.trained[0]) // 4)
    assert not set(rows) & set(samples.held[0])


def test_accelerate_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcp.errors import OnnxcpError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(OnnxcpError, match=r"pip install \"onnxcp\[distributed\]\""):
        finetune(student(), teacher(), data(), replace(QUICK, epochs=1))
