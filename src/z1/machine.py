"""What this machine offers: processor, memory, GPUs. Level 0; torch is imported only when GPUs are asked for."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: Product name.
        memory_gib: Memory in GiB.
        bf16: Whether it computes in bfloat16.
    """

    name: str
    memory_gib: float
    bf16: bool


def cpu_model() -> str:
    """Product name of the processor, or its architecture where the name is not told."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        return os.cpu_count() or 1


def memory_gib() -> float:
    """Memory that this process may use, in GiB: the machine's, or less where a container has a limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0.0
    for path in CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total / GIB


def gpus() -> list[Gpu]:
    """CUDA devices that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / GIB
        found.append(Gpu(name=properties.name, memory_gib=round(memory, 1), bf16=properties.major >= 8))
    return found


def visible_gpus() -> tuple[str, ...]:
    """CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = len(gpus())
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(number) for number in range(count))
