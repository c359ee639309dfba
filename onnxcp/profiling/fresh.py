"""What a network takes of a process that does nothing else: memory, and time to its first result.

Both need a process of their own: memory that a session gave back stays with the process, and
libraries are loaded once. `start_fresh` makes the processes, and this module is what they run.

Peak memory is the high-water mark of the resident set (VmHWM of /proc on Linux, ru_maxrss on
macOS) while the session is opened and run a few times, less the resident set just before: weights,
the arena of activations, inputs and outputs, and what a first session sets up (some 8 MB on the
CPU), but not Python, NumPy and the libraries of ONNX Runtime. Device memory is what nvidia-smi
counts as used after the runs, less what was used before; ONNX Runtime gives none of it back, so
that is its peak, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxcp.errors import ModelError
from onnxcp.graph.model import Model, save
from onnxcp.profiling.inputs import Shape, random_feeds
from onnxcp.profiling.machine import Machine
from onnxcp.profiling.nvidia import device_bytes
from onnxcp.profiling.providers import device_of
from onnxcp.profiling.session import infer, open_session

_PROCESSES = 3
_MAX_SECONDS = 1.5  # after so long no further process is started
_RUNS = 3

_STATUS = Path("/proc/self/status")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Fresh:
    """What a network took of a fresh process.

    Attributes
    ----------
    session_seconds
        Opening the session: reading the file, optimising the graph, packing weights.
    first_seconds
        The first run; on CUDA with the search for algorithms.
    peak_bytes
        Peak of resident memory beyond what the process held before; None where the system does not
        tell.
    device_bytes
        Memory of the device; None where there is none, or nvidia-smi does not tell.
    processes
        How many processes there were; times are medians, and bytes the most, over them.
    """

    session_seconds: float
    first_seconds: float
    peak_bytes: int | None
    device_bytes: int | None = None
    processes: int = 1

    @property
    def to_first_result(self) -> float:
        """Seconds from opening the session to the first result."""
        return self.session_seconds + self.first_seconds


def start_fresh(
    model: Model,
    machine: Machine,
    shapes: Mapping[str, Shape],
    *,
    clock: Clock = time.perf_counter,
) -> Fresh:
    """Measure a network in fresh processes: three, or fewer where each takes seconds.

    Parameters
    ----------
    model
        The network; one that is no file is written to a temporary one.
    machine
        Where to run it.
    shapes
        Shapes of its inputs.
    clock
        Where seconds are read, to stop in time.

    Raises
    ------
    ModelError
        If a process fails, for want of memory perhaps.
    """
    with _file(model) as path:
        task = {
            "path": str(path),
            "providers": machine.providers,
            "intra_op_num_threads": machine.intra_op_num_threads,
            "shapes": dict(shapes),
        }
        start = clock()
        found = [_in_process(task, model.name)]
        while len(found) < _PROCESSES and clock() - start < _MAX_SECONDS:
            found.append(_in_process(task, model.name))
    return Fresh(
        statistics.median(each.session_seconds for each in found),
        statistics.median(each.first_seconds for each in found),
        max((each.peak_bytes for each in found if each.peak_bytes is not None), default=None),
        max((each.device_bytes for each in found if each.device_bytes is not None), default=None),
        len(found),
    )


def measure_here(task: Mapping[str, Any]) -> Fresh:
    """Open and run a network in this process, which must be a fresh one."""
    numbers = (device_of(each) for each in task["providers"])
    device = next((each for each in numbers if each is not None), None)
    shapes = {name: tuple(shape) for name, shape in task["shapes"].items()}
    np.random.default_rng(0)  # what makes the feeds is imported now, and does not count
    forget_peak()
    resident, used = resident_bytes(), device_bytes(device) if device is not None else None
    start = time.perf_counter()
    session = open_session(
        Path(task["path"]),
        providers=task["providers"],
        intra_op_num_threads=task["intra_op_num_threads"],
    )
    opened = time.perf_counter()
    feeds = random_feeds(session, shapes=shapes)
    made = time.perf_counter()
    infer(session, feeds)
    ran = time.perf_counter()
    for _ in range(_RUNS - 1):
        infer(session, feeds)
    peak, after = peak_bytes(), device_bytes(device) if device is not None else None
    return Fresh(
        opened - start,
        ran - made,
        None if peak is None or resident is None else max(0, peak - resident),
        None if after is None or used is None else max(0, after - used),
    )


def resident_bytes(status: Path = _STATUS) -> int | None:
    """Return the memory of this process that is in memory now; None where nobody tells.

    On macOS, which only tells the peak, that.
    """
    return _status(status, "VmRSS") if status.exists() else peak_bytes(status)


def peak_bytes(status: Path = _STATUS) -> int | None:
    """Return the most that `resident_bytes` has been; None where nobody tells."""
    # ru_maxrss of Linux survives exec: a child begins with the peak of its parent.
    if status.exists():
        return _status(status, "VmHWM")
    with contextlib.suppress(ImportError):  # There is no such module on Windows.
        import resource

        # In bytes on macOS, which alone comes here.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def forget_peak() -> None:
    """Make the peak what is resident now, where the system can do that: imports had one, too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(path: Path, key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _in_process(task: Mapping[str, Any], name: str) -> Fresh:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "onnxcp.profiling.fresh"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        # What this process finds its modules by, the child needs, too.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        reason = said[-1].rstrip(".") if said else f"it ended with code {done.returncode}"
        raise ModelError(f"'{name}' does not run in a process of its own: {reason}.")
    return Fresh(**json.loads(done.stdout.splitlines()[-1]))


@contextlib.contextmanager
def _file(model: Model) -> Iterator[Path]:
    if model.path is not None:
        yield model.path
        return
    with tempfile.TemporaryDirectory(prefix="onnxcp-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield path


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure_here(json.load(sys.stdin)))) + "\n")
