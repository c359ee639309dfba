"""What nvidia-smi, which comes with the driver, tells of a device."""

from __future__ import annotations

import shutil
import subprocess


def device_bytes(device: int = 0) -> int | None:
    """Return how much memory of a device all processes use; None where nobody tells."""
    text = _told("memory.used", device)
    return int(text) * 2**20 if text.isdecimal() else None


def device_name(device: int = 0) -> str:
    """Return the name of a device and the version of its driver; "" where nobody tells."""
    name, _, driver = _told("name,driver_version", device).partition(", ")
    return f"{name}, driver {driver}" if driver else name


def _told(what: str, device: int) -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    query = f"--query-gpu={what}", "--format=csv,noheader,nounits", f"--id={device}"
    done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
