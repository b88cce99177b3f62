"""How well ``z1 import --verify`` tells right actions from wrong ones, on demonstrations that are known to be right.

    python benchmarks/verify_import.py FILE.hdf5 [FILE.hdf5 ...] --demos 1 --out results.json

For the first demonstrations of each file: the share of motion that is explained by the actions as they are, and by
actions made wrong (two arm dims exchanged, one turned round, one frame late or early, another scale, LeRobot's order).
For every two demonstrations of all files: what their correlations say, by which the order is told without a simulator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from z1.data.motion import MIN_FRAMES, find_order, motion, shares_of_motion
from z1.data.sources.robomimic import RobomimicSource
from z1.data.verify import frames_to_replay
from z1.files import write_json
from z1.sims.replay import Replayer
from z1.sims.robocasa_layout import ACTION_DIM, ACTION_NAMES, BASE, GRIPPER, LEROBOT_ACTION
from z1.sims.spec import SimSpec

ARM = 6

Wrong = Callable[[np.ndarray], np.ndarray]


def _exchanged(one: int, other: int) -> Wrong:
    order = list(range(ACTION_DIM))
    order[one], order[other] = order[other], order[one]
    return lambda actions: actions[:, order]


def _turned(dim: int) -> Wrong:
    return lambda actions: actions * np.where(np.arange(ACTION_DIM) == dim, -1.0, 1.0)


def _scaled(factor: float) -> Wrong:
    return lambda actions: actions * np.where(np.arange(ACTION_DIM) < ARM, factor, 1.0)


def wrong_orders() -> dict[str, Wrong]:
    """Actions in another order or with another sign, by what was done to them."""
    wrong: dict[str, Wrong] = {"LeRobot's order": lambda actions: actions[:, list(LEROBOT_ACTION)]}
    for one, other in combinations(range(ARM), 2):
        wrong[f"{ACTION_NAMES[one]} and {ACTION_NAMES[other]} exchanged"] = _exchanged(one, other)
    for dim in range(ARM):
        wrong[f"{ACTION_NAMES[dim]} turned round"] = _turned(dim)
    return wrong


def other_mistakes() -> dict[str, Wrong]:
    """What only the simulator can tell."""
    return {
        "gripper turned round": _turned(GRIPPER),
        "base forward and side exchanged": _exchanged(BASE.start, BASE.start + 1),
        "a frame late": lambda actions: np.roll(actions, 1, axis=0),
        "a frame early": lambda actions: np.roll(actions, -1, axis=0),
        "half": _scaled(0.5),
        "double": _scaled(2.0),
    }


def simulated(source: RobomimicSource, demos: int, replayer: Replayer) -> list[dict[str, Any]]:
    """A row per demonstration and mistake."""
    rows = []
    for name in source.episodes[:demos]:
        vectors = source.vectors(name)
        recording = source.recording(name, vectors)
        assert recording is not None, f"{name} holds no simulator states"
        frames = frames_to_replay(vectors.states)
        before = vectors.states[frames]
        recorded = motion(before, vectors.states[frames + 1])
        for mistake, change in {"right": lambda actions: actions, **wrong_orders(), **other_mistakes()}.items():
            actions = change(vectors.actions).astype(np.float32)
            replay = replayer.replay(replace(recording, actions=actions), frames.tolist())
            executed, idle = motion(before, replay.after_action), motion(before, replay.after_nothing)
            shares = shares_of_motion(recorded, executed, idle)
            worst = min(shares, key=lambda share: share.worst_share)
            row = {
                "file": source.path.name,
                "demo": name,
                "mistake": mistake,
                "worst": worst.worst,
                "worst_share": round(worst.worst_share, 4),
                "shares": {share.part.name: round(share.share, 4) for share in shares},
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def by_numbers(sources: list[RobomimicSource]) -> list[dict[str, Any]]:
    """A row per mistake: how often two demonstrations, of any files, tell it by their correlations."""
    vectors = [source.vectors(name) for source in sources for name in source.episodes]
    rows = []
    for mistake, change in {"right": lambda actions: actions, **wrong_orders()}.items():
        changed = [(episode.states, change(episode.actions)) for episode in vectors]
        orders = [find_order(pair) for pair in combinations(changed, 2)]
        orders = [order for order in orders if order.frames >= MIN_FRAMES]
        verdicts = Counter(order.verdict for order in orders)
        margins = sorted(round(order.margin, 3) for order in orders)
        row = {"mistake": mistake, "pairs": len(orders), **verdicts, "margins": [margins[0], margins[-1]]}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--demos", type=int, default=1, help="demonstrations of each file to replay")
    parser.add_argument("--files-replayed", type=int, help="replay only so many of the files, default all")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sources = [RobomimicSource(path) for path in arguments.files]
    numbers = by_numbers(sources)
    rows = []
    with Replayer(SimSpec(simulator="robocasa")) as replayer:
        for source in sources[: arguments.files_replayed]:
            rows += simulated(source, arguments.demos, replayer)
    content = {
        "command": " ".join(["python", *sys.argv]),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "numbers": numbers,
        "simulator": rows,
    }
    write_json(arguments.out, content)


if __name__ == "__main__":
    main()
