"""The machine of a measurement: its description for results files, and defaults for devices and dtypes."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from .errors import CommandError


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """The device of a name; None: the GPU if there is one, else the CPU.

    Raises:
        CommandError: there is no such device on this machine.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = "cpu and cuda" if torch.cuda.is_available() else "cpu"
        reason = next(iter(str(error).splitlines()), "")
        raise CommandError(f"device {name} cannot be used on this machine, {usable} can: {reason}") from error
    return chosen


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of a name; None: bfloat16 on a GPU, float32 on a CPU."""
    dtype: torch.dtype = getattr(torch, name or ("bfloat16" if device.type == "cuda" else "float32"))
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def describe(device: torch.device | str | None = None) -> dict[str, Any]:
    """Processor or GPU, threads and versions, for the head of a results file; None: the GPU, if there is one."""
    device = pick_device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def device_and_threads(machine: dict[str, Any]) -> str:
    """A description of `describe` in short: `NAME OF DEVICE, N threads`."""
    return f"{machine['device']}, {machine['threads']} threads"
