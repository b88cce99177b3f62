"""Milliseconds of the tiny policy's passes on a CPU: acting, SFT step, update with cached and with recomputed prefixes.

python benchmarks/policy_cpu.py --threads 2 --out benchmarks/results/policy_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from z1.data.stats import compute_stats
from z1.machine import cpu_model
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.policy import Policy
from z1.policy.trainable import parameter_groups
from z1.types import Observations

BATCH = 64


def make_policy() -> Policy:
    """The tiny policy with random weights, two cameras, MetaWorld's state and action."""
    spread = compute_stats(np.linspace(-1, 1, 101)[:, None].repeat(4, axis=1))
    processor = ProcessorConfig.of_dataset(cameras=("corner2", "gripperPOV"), state_stats=spread, action_stats=spread)
    return Policy.create(PolicyConfig.tiny(), processor, seed=0)


def median_ms(function: Callable[[], Any], repeats: int) -> float:
    """Median duration of a call in milliseconds, after two calls that do not count."""
    durations = []
    for repeat in range(repeats + 2):
        began = time.perf_counter()
        function()
        if repeat >= 2:
            durations.append(time.perf_counter() - began)
    return float(np.median(durations) * 1e3)


def measure(threads: int, repeats: int) -> dict[str, float]:
    """All passes at a batch of 64 observations."""
    torch.set_num_threads(threads)
    policy = make_policy()
    model, config = policy.model, policy.config
    rng = np.random.default_rng(0)
    size = config.image_size
    observations = Observations(
        images=rng.integers(0, 256, (BATCH, 2, size, size, 3), dtype=np.uint8),
        state=rng.uniform(-1, 1, (BATCH, 4)).astype(np.float32),
        instructions=("Pull the lever up",) * BATCH,
    )
    inputs = policy.prepare(observations)
    x = torch.randn(BATCH, config.horizon, config.action_dim)
    t = torch.rand(BATCH)

    def encode() -> Any:
        with torch.no_grad():
            return model.encode_prefix(inputs)

    def denoise() -> None:
        with torch.no_grad():
            model.velocity(prefix, x, t)

    def train(recompute: bool) -> None:
        cached = model.encode_prefix(inputs) if recompute else prefix
        model.velocity(cached, x, t).square().mean().backward()
        model.zero_grad(set_to_none=True)

    prefix = encode()
    result = {
        "prepare": median_ms(lambda: policy.prepare(observations), repeats),
        "encode_prefix": median_ms(encode, repeats),
        "denoise_step": median_ms(denoise, repeats),
    }
    parameter_groups(model, "joint", learning_rate=1e-3, vlm_learning_rate=1e-3)
    result["joint_forward_backward"] = median_ms(lambda: train(True), repeats)
    parameter_groups(model, "expert", learning_rate=1e-3, vlm_learning_rate=1e-3)
    result["expert_forward_backward_prefix_recomputed"] = median_ms(lambda: train(True), repeats)
    result["expert_forward_backward_prefix_cached"] = median_ms(lambda: train(False), repeats)
    return result


def main() -> None:
    """Measures with one and with several threads and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/policy_cpu.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "batch": BATCH,
        "parameters": make_policy().parameter_count,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "milliseconds": {f"{n} threads": measure(n, options.repeats) for n in sorted({1, options.threads})},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
