"""The whole demo loop (``z1 demo``) over several seeds, all results recorded, good and bad.

    python benchmarks/demo_seeds.py --seeds 5 --out runs/demo-seeds --result benchmarks/results/demo_seeds.json

Each seed changes the action noise of the demonstrations, the initial weights, the batches of SFT, and the scenes and
noise of RL. The demonstrated scenes and the test scenes are the same. A demo that was interrupted is continued.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import z1
from z1.machine import cpu_model


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Runs the demo for one seed in a process of its own, as a user would."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "z1.cli", "demo", "--seed", str(seed), "--out", str(folder)]
    if folder.exists():
        command += ["--resume"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    evaluation = json.loads((folder / "rl" / "evaluation.json").read_text())
    before, after = evaluation["summary"]["per_task"]
    pair = evaluation["summary"]["paired"][0]
    last = json.loads((folder / "rl" / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "seed": seed,
        "task": before["task"],
        "episodes": before["episodes"],
        "sft": [before["rate"], before["low"], before["high"]],
        "rl": [after["rate"], after["low"], after["high"]],
        "difference": [pair["difference"], pair["low"], pair["high"]],
        "gained": pair["gained"],
        "lost": pair["lost"],
        "env_steps": last["cost/env_steps"],
        "seconds": round(seconds, 1),
        "seconds_by_stage": json.loads((folder / "seconds.json").read_text()),
    }


def main() -> None:
    """Runs the seeds and writes the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/demo_seeds.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/demo_seeds.py",
        "z1": z1.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "runs": [],
    }
    for seed in range(options.seeds):
        result["runs"].append(run_seed(seed, options.out / f"seed-{seed}"))
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(result, indent=2) + "\n")
    for run in result["runs"]:
        low, high = run["difference"][1:]
        print(
            f"seed {run['seed']}: SFT {run['sft'][0]:.1%}, RL {run['rl'][0]:.1%}, "
            f"difference {100 * run['difference'][0]:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), "
            f"{run['seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
