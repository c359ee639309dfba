"""Whether products of 8 bits saturate on this processor."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_SAFE = ("avx512_vnni", "avx_vnni", "amx_int8")


@functools.cache
def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether weights of 8 bits may overflow sums of 16: x86 without VNNI.

    ONNX Runtime advises weights of 7 bits there (``reduce_range``). Where flags cannot be read,
    7 bits are the safe answer on x86; other architectures sum in 32 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return True
    return not any(flag in flags for flag in _SAFE)
