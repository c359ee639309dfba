"""What nvidia-smi, which comes with the driver, tells of a device."""

from __future__ import annotations

import os
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


def _by_driver(device: int) -> str:
    """Return what the driver calls a device of CUDA, which numbers those that it may see.

    `CUDA_VISIBLE_DEVICES` lists them by number or identifier. Without it, numbers are taken to be
    the same, as they are where devices are of one kind, or `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(device)
    names = [each.strip() for each in visible.split(",")]
    return names[device] if device < len(names) else ""


def _told(what: str, device: int) -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    name = _by_driver(device)
    if not name:
        return ""
    query = f"--query-gpu={what}", "--format=csv,noheader,nounits", f"--id={name}"
    done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
