"""``z1 eval`` and videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from z1.commands.base import (
    console,
    open_pool,
    pick_device,
    policy_place,
    progress_bar,
    simulator_record,
)
from z1.config import EvalConfig
from z1.convert import open_policy
from z1.errors import ConfigError, RunFolderError
from z1.eval.evaluate import episodes_at_once, evaluate_policy
from z1.eval.stats import summarise
from z1.eval.tables import evaluation_table
from z1.eval.video import write_mp4
from z1.files import read_json, write_json
from z1.policy.policy import Policy
from z1.rollout.collector import check_chunk_length
from z1.rollout.videos import choose_scenes, film_episode
from z1.sims.pool import SimPool
from z1.sims.suites import simulator_of
from z1.train.trained import settled_precision
from z1.types import Scene, SimInfo


def run_eval(config: EvalConfig) -> dict[str, Any]:
    """``z1 eval``: the policies' success on the same scenes, as JSON and as a table.

    Returns:
        The evaluation, schema ``z1.evaluation/1``.
    """
    out = Path(config.out)
    _check_output(out, overwrite=config.overwrite)
    device = pick_device(config.device)
    precision = settled_precision(config.precision, device)
    for task in config.task:
        simulator_of(task)
        if config.task.count(task) > 1:
            raise ConfigError(f"task names {task} {config.task.count(task)} times; name each task once")
    places = [policy_place(path) for path in config.policy]
    policies = [open_policy(place, device=device, dtype=precision) for place in places]
    for policy in policies:
        check_chunk_length(policy, config.acting)
    episodes: list[dict[str, Any]] = []
    protocol: dict[str, Any] = {}
    horizons: dict[str, int] = {}
    for task in config.task:
        scenes = [Scene.of_split(task, config.split, i) for i in range(config.episodes)]
        for number, policy in enumerate(policies):
            with open_pool(policy, task, config.sim) as pool:
                horizons[task] = pool.horizon_of(task)
                protocol |= _protocol(config, precision, pool.info, horizons)
                label = f"{task}, {config.policy[number]}"
                episodes += _evaluate_one(pool, policy, config, scenes, number, label)
    names = policy_names(config.policy)
    evaluation: dict[str, Any] = {
        "schema": "z1.evaluation/1",
        "protocol": protocol,
        "policies": [{"name": name, "path": str(path)} for name, path in zip(names, config.policy, strict=True)],
        "episodes": episodes,
    }
    evaluation["summary"] = summarise(episodes, evaluation["policies"])
    write_json(out, evaluation)
    console.print(evaluation_table(evaluation))
    console.print(f"Written: {out}")
    return evaluation


def _check_output(out: Path, *, overwrite: bool) -> None:
    """Refuses an output file that could not be written, before anything is computed.

    Raises:
        RunFolderError: It exists already, is a folder, or its folder cannot be made.
    """
    if out.is_dir():
        raise RunFolderError(f"{out} is a folder; --out names the JSON file to write")
    if out.exists() and not overwrite:
        raise RunFolderError(f"{out} exists already; choose another --out, or pass --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    if not os.access(out.parent, os.W_OK):
        raise RunFolderError(f"cannot write {out}: {out.parent} is not writable; choose another --out")


def policy_names(paths: Sequence[str]) -> list[str]:
    """Short names of policies: the last part of each path, the whole path where that is not unique."""
    short = [Path(path).name or path for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def _evaluate_one(
    pool: SimPool, policy: Policy, config: EvalConfig, scenes: list[Scene], number: int, label: str
) -> list[dict[str, Any]]:
    with progress_bar(label, len(scenes)) as (bar, task):
        results = evaluate_policy(
            pool,
            policy,
            config.acting,
            scenes,
            seed=config.seed,
            live_members=config.live_members or episodes_at_once(pool.info),
            instruction=config.instruction,
            on_tick=lambda steps, done: bar.update(task, completed=done, note=f"{steps} env steps"),
        )
    return [
        {
            "policy": number,
            "task": r.scene.task,
            "seed": r.scene.seed,
            "success": r.success,
            "steps": r.steps,
            "invalid": r.invalid,
        }
        for r in results
    ]


def record_videos(config: EvalConfig, folder: Path, *, count: int = 3, camera: str = "") -> None:
    """Films the two policies of an evaluation on the same scenes, for the report.

    Args:
        config: The evaluation, already run; its first two policies are ``before`` and ``after``.
        folder: Folder of the videos and of ``videos.json``.
        count: Scenes to film.
        camera: Camera to film with; empty: the policies' first.
    """
    chosen = choose_scenes(read_json(Path(config.out), RunFolderError), count)
    device = pick_device(config.device)
    dtype = settled_precision(config.precision, device)
    policies = [open_policy(policy_place(path), device=device, dtype=dtype) for path in config.policy[:2]]
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with (
        open_pool(policies[0], config.task[0], replace(config.sim, hosts=1)) as pool,
        progress_bar("videos", len(chosen)) as (bar, task),
    ):
        for pair in chosen:
            scene = Scene(task=pair["task"], seed=pair["seed"], split=config.split)
            row: dict[str, Any] = {"task": scene.task, "seed": scene.seed}
            for label, policy in zip(("before", "after"), policies, strict=True):
                frames, success = film_episode(
                    pool,
                    policy,
                    config.acting,
                    scene,
                    seed=config.seed,
                    camera=camera or pool.info.cameras[0],
                    every=4,
                    instruction=config.instruction,
                )
                name = f"{label}_{scene.task.replace('/', '_')}_{scene.seed}.mp4"
                write_mp4(folder / name, frames, fps=round(pool.info.control_hz / 4))
                row |= {label: name, f"{label}_success": success}
            rows.append(row)
            bar.advance(task)
    write_json(folder / "videos.json", rows)


def _protocol(config: EvalConfig, precision: str, info: SimInfo, horizons: dict[str, int]) -> dict[str, Any]:
    return {
        "success": "first success",
        "episodes": config.episodes,
        "split": config.split,
        "seed": config.seed,
        "horizon": config.sim.horizon,
        "horizons": dict(horizons),
        "denoise_steps": config.acting.denoise_steps,
        "chunk_length": config.acting.chunk_length,
        "denoising": "ODE",
        "precision": precision,
        "instruction": config.instruction or "the task's own",
        **simulator_record(info),
    }
