"""``z1 demo``: the whole loop on real MetaWorld simulation with a tiny policy, on two CPU cores, in minutes.

Demonstrations, SFT, RL, evaluation of both policies on the same unseen scenes, report. Every stage is the ordinary
command with a recipe; an interrupted demo continues where it was with ``--resume``.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from z1.commands import console, record_videos, run_demos, run_eval, run_rl, run_sft
from z1.config import EvalConfig, require
from z1.errors import ConfigError, RunFolderError
from z1.eval.report import write_report
from z1.files import read_json, write_json
from z1.recipes import DEMO_HORIZON, DEMO_TASK, demo_demonstrations, demo_evaluation, demo_rl, demo_sft
from z1.sims.suites import simulator_of

SHORTEST = 40
"""Env steps of the shortest episode that a demo can have: its trees branch until the fourth chunk of 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRunConfig:
    """``z1 demo``: the whole loop in minutes."""

    out: str = "runs/demo"
    """Folder to create."""
    task: str = DEMO_TASK
    """Task id; the settings were chosen for the default task."""
    horizon: int = DEMO_HORIZON
    """Env steps of an episode; the default suits the default task. 0: the simulator's own."""
    seed: int = 0
    """Seed of every stage."""
    hosts: int = 2
    """Simulator processes."""
    test_episodes: int = 200
    """Unseen test scenes on which both policies are compared."""
    resume: bool = False
    """Continue an interrupted demo in the same folder."""

    def __post_init__(self) -> None:
        require(self.horizon == 0 or self.horizon >= SHORTEST, "horizon", self.horizon, f"0, or at least {SHORTEST}")
        require(self.hosts >= 1, "hosts", self.hosts, "at least 1")
        require(self.test_episodes >= 1, "test_episodes", self.test_episodes, "at least 1")


def run_demo(config: DemoRunConfig) -> dict[str, Any]:
    """Runs every stage that is not complete yet.

    Returns:
        The evaluation, schema ``z1.evaluation/1``.

    Raises:
        UnknownNameError: No such task.
        RunFolderError: The folder exists and ``resume`` is not set.
        ConfigError: The demo to resume was started with other settings.
    """
    out = Path(config.out)
    if out.exists() and not config.resume:
        raise RunFolderError(f"{out} exists already; choose another --out, or pass --resume to continue it")
    simulator_of(config.task)
    _check_settings(config, out / "demo.json")
    seconds: dict[str, float] = (
        read_json(out / "seconds.json", RunFolderError) if (out / "seconds.json").exists() else {}
    )
    stages = {
        "demonstrations": _record,
        "sft": _sft,
        "rl": _rl,
        "evaluation": _evaluate,
        "videos": _videos,
    }
    for number, (name, stage) in enumerate(stages.items(), start=1):
        if name in seconds:
            continue
        console.rule(f"[bold]{number}/{len(stages)} {name}")
        began = time.perf_counter()
        stage(config, out)
        seconds[name] = round(time.perf_counter() - began, 1)
        write_json(out / "seconds.json", seconds)
    return _finish(config, out, seconds)


def _check_settings(config: DemoRunConfig, path: Path) -> None:
    """Writes down the settings of a new demo; refuses to continue one under others.

    Raises:
        ConfigError: Names the settings that differ.
    """
    now = {name: value for name, value in asdict(config).items() if name not in ("out", "hosts", "resume")}
    if not path.exists():
        write_json(path, now)
        return
    stored = read_json(path, RunFolderError)
    differing = [
        f"{name} was {stored.get(name)!r}, is {value!r}" for name, value in now.items() if stored.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"cannot resume {path.parent} with other settings: {'; '.join(differing)}. "
            "Pass the ones it was started with, or choose another --out."
        )


def _record(config: DemoRunConfig, out: Path) -> None:
    if (out / "demonstrations").exists():  # it appears complete or not at all
        return
    settings = demo_demonstrations(config.task, str(out / "demonstrations"), seed=config.seed, hosts=config.hosts)
    run_demos(settings)


def _sft(config: DemoRunConfig, out: Path) -> None:
    settings = demo_sft(str(out / "demonstrations"), str(out / "sft"), seed=config.seed)
    run_sft(settings, resume=(out / "sft" / "config.json").exists())


def _rl(config: DemoRunConfig, out: Path) -> None:
    settings = demo_rl(
        str(out / "sft"), config.task, str(out / "rl"), seed=config.seed, hosts=config.hosts, horizon=config.horizon
    )
    run_rl(settings, resume=(out / "rl" / "config.json").exists())


def _evaluation_config(config: DemoRunConfig, out: Path) -> EvalConfig:
    return demo_evaluation(
        (str(out / "sft"), str(out / "rl")),
        config.task,
        str(out / "rl" / "evaluation.json"),
        episodes=config.test_episodes,
        hosts=config.hosts,
        horizon=config.horizon,
    )


def _evaluate(config: DemoRunConfig, out: Path) -> None:
    run_eval(_evaluation_config(config, out))


def _videos(config: DemoRunConfig, out: Path) -> None:
    record_videos(_evaluation_config(config, out), out / "rl" / "videos")


def _finish(config: DemoRunConfig, out: Path, seconds: dict[str, float]) -> dict[str, Any]:
    report = write_report(out / "rl")
    evaluation = read_json(out / "rl" / "evaluation.json", RunFolderError)
    pair = evaluation["summary"]["paired"][0]
    before, after = evaluation["summary"]["per_task"][:2]
    console.rule("[bold]z1 demo")
    console.print(
        f"{config.task}: success {before['rate']:.1%} after SFT, {after['rate']:.1%} after RL, "
        f"on the same {before['episodes']} unseen scenes.\n"
        f"Paired difference {100 * pair['difference']:+.1f} points, 95 % interval "
        f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}."
    )
    console.print(
        "Seconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        + f"; in all {sum(seconds.values()):.0f}"
    )
    console.print(f"Report: {report}")
    console.print(
        "Try next:\n"
        f"  z1 demo --task metaworld/dial-turn --horizon 140 --out runs/dial     another task (z1 tasks)\n"
        f"  z1 rl --policy {out / 'sft'} --task {config.task} --recipe tiny-awfm --out runs/awfm   another objective\n"
        f"  z1 eval --policy {out / 'sft'} --policy {out / 'rl'} --task {config.task} "
        "--episodes 300 --out runs/more.json"
    )
    return evaluation
