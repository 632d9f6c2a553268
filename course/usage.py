"""How much processor time and memory a kernel has used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Usage:
    """CPU seconds of all threads and the highest resident memory in MiB."""

    seconds: float
    memory: float


def of_kernel(manager: Any) -> Usage:
    """Return what the process of a kernel, given by its Jupyter manager, and its children have used so far.

    The peak of memory is the system's own count on Linux and Windows; on macOS it is the present value.
    """
    process = psutil.Process(manager.provisioner.process.pid)
    times = process.cpu_times()
    seconds = times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return Usage(seconds, _peak(process) / 2**20)


def _peak(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found.group(1)) * 1024
    memory = process.memory_info()
    return getattr(memory, "peak_wset", memory.rss)
