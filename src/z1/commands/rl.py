"""``z1 rl``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import (
    Progress,
    TaskID,
)

from z1.commands.base import (
    console,
    open_pool,
    pick_device,
    policy_place,
    progress_bar,
    simulator_record,
)
from z1.config import RlConfig, RolloutConfig, config_to_dict
from z1.convert import open_policy
from z1.policy.policy import Policy
from z1.rollout.collector import check_chunk_length
from z1.sims.pool import SimPool
from z1.train.checkpoint import TrainingState
from z1.train.metrics import MetricsWriter
from z1.train.resume import RL_MAY_CHANGE, check_resume, undone_on_error
from z1.train.run_folder import RunFolder
from z1.train.selection import describe
from z1.train.selective import START, SelectiveRun
from z1.train.trained import settled_precision
from z1.train.trainer import Progress as TrainerProgress
from z1.train.trainer import Trainer, episode_chunks


def run_rl(config: RlConfig, *, resume: bool = False) -> Path:
    """``z1 rl``: improves a policy in the simulator.

    Returns:
        The run folder.
    """
    device = pick_device(config.device)
    config = replace(config, precision=settled_precision(config.precision, device))
    source = policy_place(config.policy) if not resume else _saved_policy(config)
    policy = open_policy(source, device=device)
    check_chunk_length(policy, config.acting)
    with open_pool(policy, config.task, config.sim) as pool:
        episode_chunks(config, pool)  # before there is a folder
        if resume:
            run = RunFolder.open(Path(config.out))
            run.update_config(config_to_dict(config))
        else:
            run = RunFolder.create(
                Path(config.out), config_to_dict(config), "rl", environment=simulator_record(pool.info)
            )
        update = config.update
        mode = f"{update.mode} training" if config.selection == "off" else "selective joint training"
        if pool.info.stand_ins:
            console.print(f"[yellow]{pool.info.stand_ins}[/yellow]")
        console.print(
            f"RL on {config.task}: {update.objective}, {mode}, {_describe_groups(config.rollout)}, "
            f"{config.sim.hosts} simulator processes, {device} in {config.precision}"
        )
        if config.selection == "auto":
            del policy  # every probe loads it anew
            state = _run_selective(config, source, device, pool, run, resume=resume)
        else:
            state = _run_in_one_mode(config, policy, pool, run, resume=resume)
    if (selection := run.selection) is not None:
        console.print(f"Selection: {describe(selection)}")
    if state.best is not None:
        console.print(f"Best validation success {state.best:.1%} after iteration {state.best_step}")
    console.print(f"Policy: {run.path / 'policy'}")
    precision = "" if config.precision == "float32" else f"--precision {config.precision} "
    console.print(
        f"Next: z1 eval --policy {config.policy} --policy {run.path} --task {config.task} "
        f"{precision}--out {run.path / 'evaluation.json'}; z1 report {run.path}"
    )
    return run.path


def _run_in_one_mode(config: RlConfig, policy: Policy, pool: SimPool, run: RunFolder, *, resume: bool) -> TrainingState:
    """Trains to the end with ``update.mode`` and puts the policy into place."""
    with ExitStack() as stack:
        with undone_on_error(run, resume=resume):
            metrics = stack.enter_context(
                MetricsWriter(run.path, wandb=config.wandb, config=config_to_dict(config), resume=resume)
            )
            bar, task = stack.enter_context(progress_bar("rl", config.iterations))
            trainer = Trainer(config, policy, pool, run.path, metrics, on_progress=lambda p: _show(bar, task, p))
            if resume:
                trainer.resume()
        metrics.resume_at("iteration", trainer.state.step)
        bar.update(task, completed=trainer.state.step)
        state = trainer.run()
        trainer.finish()
    return state


def _run_selective(
    config: RlConfig, start: str | Path, device: torch.device, pool: SimPool, run: RunFolder, *, resume: bool
) -> TrainingState:
    """Trains to the end in the mode that the probes decide for, and puts the policy into place."""
    with ExitStack() as stack:
        with undone_on_error(run, resume=resume):
            metrics = stack.enter_context(
                MetricsWriter(run.path, wandb=config.wandb, config=config_to_dict(config), resume=resume)
            )
        bar, task = stack.enter_context(progress_bar("rl", config.iterations))
        return SelectiveRun(
            config=config,
            load=lambda place: open_policy(place, device=device),
            start=start,
            pool=pool,
            folder=run.path,
            on_progress=lambda p: _show(bar, task, p),
            on_phase=bar.console.print,
        ).run(metrics)


def _describe_groups(rollout: RolloutConfig) -> str:
    groups = f"{rollout.groups} groups of {rollout.group_size}"
    if rollout.plan == "flat":
        return groups
    return f"{groups} ({rollout.plan.replace('_', ' ')}, {rollout.prefix_schedule} P of {rollout.prefix} chunks)"


def _saved_policy(config: RlConfig) -> str | Path:
    """The policy folder with which a run continues: its last checkpoint's, or the one it started from.

    Raises:
        ConfigError: The run was started with other settings.
        RunFolderError: There is no such run.
    """
    run = RunFolder.open(Path(config.out))
    check_resume(run.config, config, run.path, may_change=RL_MAY_CHANGE)
    for saved in (run.last_checkpoint / "policy", run.path / START / "policy"):
        if saved.exists():
            return saved
    return policy_place(config.policy)


def _show(bar: Progress, task: TaskID, progress: TrainerProgress) -> None:
    """Shows what the RL loop is doing; a line per iteration stays on the screen."""
    if progress.metrics is None:
        bar.update(task, note=f"{progress.phase}: {progress.detail}")
        return
    m = progress.metrics
    parts = [f"iteration {progress.iteration + 1:3d}" if progress.iteration >= 0 else "start        "]
    if "rollout/success" in m:
        parts.append(f"training success {m['rollout/success']:6.1%}")
    if "update/approx_kl" in m:
        parts.append(f"loss {m['update/loss']:+.4f}  kl {m['update/approx_kl']:.4f}")
    if "eval/success" in m:
        parts.append(f"[bold]validation success {m['eval/success']:.1%}[/bold]")
    parts.append(f"{int(m.get('cost/env_steps', 0)):,} env steps")
    bar.console.print("  ".join(parts))
    bar.update(task, completed=progress.iteration + 1, note="")
