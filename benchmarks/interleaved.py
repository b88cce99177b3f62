"""Timing on a busy machine: cases take turns, so that what slows one down slows the others down as well."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from z1.machine import cores, cpu_model
from z1.policy.cost import H200, Device

KNOWN = (H200,)
LEAST_ROUNDS, GROUP_SECONDS = 3, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to be timed.

    Attributes:
        name: What it is.
        run: Does it once.
        flops: Operations by the cost model.
        nbytes: Bytes to and from memory by the cost model, 0 where that does not matter.
    """

    name: str
    run: Callable[[], object]
    flops: float
    nbytes: float = 0.0


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor_time(device: torch.device) -> bool:
    """Whether processor time is measured: on one thread it is the wall time of a machine with nothing else to do."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, see ``processor_time``."""
    clock = time.process_time if processor_time(device) else time.perf_counter
    synchronise(device)
    began = clock()
    run()
    synchronise(device)
    return clock() - began


def measure(cases: Sequence[Case], rounds: int, device: torch.device, limit: Device) -> dict[str, Any]:
    """Times cases in turns: A B C A B C ...

    Args:
        cases: The first is what the others are compared with.
        rounds: How many turns count, at most; there are fewer where a turn is long. One before them does not count.
        device: Where they run.
        limit: What the device can do at most.

    Returns:
        By case: median and quartiles in milliseconds, TFLOP/s, share of the least possible time, the median over the
        rounds of the first case's time over its own, and the same by the cost model. On a GPU, peak memory.
    """
    peaks = [_peak_gib(case, device) for case in cases]
    first = [timed(case.run, device) for case in cases]
    more = min(rounds, max(LEAST_ROUNDS, int(GROUP_SECONDS / sum(first)))) - 1
    seconds = np.array([first, *([timed(case.run, device) for case in cases] for _ in range(more))])
    least = [limit.seconds(case.flops, case.nbytes) for case in cases]
    result = {}
    for i, case in enumerate(cases):
        low, median, high = np.percentile(seconds[:, i], (25, 50, 75))
        result[case.name] = {
            "ms": round(median * 1e3, 3),
            "ms_quartiles": [round(low * 1e3, 3), round(high * 1e3, 3)],
            "tflop": round(case.flops / 1e12, 6),
            "tflops": round(case.flops / median / 1e12, 4),
            "share_of_limit": round(least[i] / median, 3),
            "times_faster": round(float(np.median(seconds[:, 0] / seconds[:, i])), 2),
            "times_faster_predicted": round(least[0] / least[i], 2),
            "rounds": len(seconds),
        }
        if peaks[i] is not None:
            result[case.name]["peak_gib"] = peaks[i]
    return result


def _peak_gib(case: Case, device: torch.device) -> float | None:
    """Runs a case to warm up; on a GPU, once more for its peak memory beyond what was there."""
    case.run()
    if device.type != "cuda":
        return None
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    case.run()
    synchronise(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 3)


def device_limit(device: torch.device, dtype: torch.dtype) -> Device:
    """What the device can do: by its data sheet where it is known, else by a large matrix product and a large copy."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in KNOWN:
            if known.name.split(",")[0] in name and dtype == torch.bfloat16:
                return known
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    buffer = torch.zeros(2**28 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    product = min(timed(lambda: a @ b, device) for _ in range(12))
    copy = min(timed(lambda: buffer.clone(), device) for _ in range(6))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return Device(name=f"{name}, measured", flops=2 * size**3 / product, bandwidth=2 * buffer.nbytes / copy)


def surroundings(device: torch.device, limit: Device) -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "device": limit.name,
        "limit_tflops": round(limit.flops / 1e12, 4),
        "limit_gb_per_s": round(limit.bandwidth / 1e9, 1),
        "processor": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "clock": "processor time" if processor_time(device) else "wall time",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
