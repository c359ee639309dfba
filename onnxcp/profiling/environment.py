"""The machine and the software that something was measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime

from onnxcp.profiling.machine import Machine
from onnxcp.profiling.nvidia import device_name
from onnxcp.profiling.providers import device_of

_PACKAGES = ("onnxcp", "onnx", "onnx-graphsurgeon", "numpy", "scipy")


@dataclass(frozen=True)
class Environment:
    """Where something was measured.

    Attributes
    ----------
    cpu
        Model name of the processor.
    cores
        Logical cores that this process may use.
    threads
        Threads within a node, in words.
    providers
        Execution providers, by short name, in order of preference.
    precision
        In which networks are deployed.
    system
        Operating system and architecture.
    device
        The NVIDIA device that networks run on, and its driver; "" if they run elsewhere.
    versions
        Versions by name of package: onnxcp, Python, ONNX Runtime and what else computes.
    """

    cpu: str
    cores: int
    threads: str
    providers: tuple[str, ...]
    precision: str
    system: str
    versions: dict[str, str]
    device: str = ""


def describe(machine: Machine, *others: Machine) -> Environment:
    """Describe this machine as a network will see it; of several ways to run it, all together."""
    machines = machine, *others
    threads = (str(each.intra_op_num_threads or "chosen by ONNX Runtime") for each in machines)
    devices = (_device(each) for each in machines)
    return Environment(
        cpu=cpu_name(),
        cores=_cores(),
        threads=", ".join(dict.fromkeys(threads)),
        providers=tuple(dict.fromkeys(name for each in machines for name in each.providers)),
        precision=machine.precision,
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        versions=_versions(),
        device=next(filter(None, devices), ""),
    )


def _device(machine: Machine) -> str:
    numbers = (device_of(each) for each in machine.providers)
    return next((device_name(each) for each in numbers if each is not None), "")


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model name of the processor, or its architecture where none is told."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware", "cpu model") and value.strip():
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    found = {
        "Python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
