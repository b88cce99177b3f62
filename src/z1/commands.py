"""What each command does, from a config to files, with progress displays. Parsing lives in ``cli.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from z1.config import EvalConfig, RlConfig, RolloutConfig, SftConfig, SimConfig, config_to_dict
from z1.convert import open_policy
from z1.data.importing import ImportConfig, ImportProgress, ImportSummary, import_dataset
from z1.data.lerobot import LeRobotDataset
from z1.data.lerobot_format import ACTION_KEY, STATE_KEY
from z1.data.mixture import feature_stats, open_datasets
from z1.data.record import DemoConfig, DemoSummary, record_demonstrations
from z1.errors import CheckpointError, ConfigError, DatasetError, RunFolderError
from z1.eval.evaluate import evaluate_policy
from z1.eval.stats import summarise
from z1.eval.tables import evaluation_table
from z1.eval.video import write_mp4
from z1.files import read_json, write_json
from z1.policy.checkpoints.load import open_checkpoint
from z1.policy.checkpoints.locate import HUB, has_weights
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.policy import Policy
from z1.rollout.collector import check_chunk_length
from z1.rollout.videos import choose_scenes, film_episode
from z1.sims.pool import SimPool, SimSpec
from z1.sims.suites import simulator_of
from z1.train.checkpoint import TrainingState
from z1.train.metrics import MetricsWriter
from z1.train.resume import RL_MAY_CHANGE, check_resume, undone_on_error
from z1.train.run_folder import RunFolder
from z1.train.selection import describe
from z1.train.selective import START, SelectiveRun
from z1.train.sft import SftTrainer
from z1.train.trained import settled_precision
from z1.train.trainer import Progress as TrainerProgress
from z1.train.trainer import Trainer
from z1.types import Scene, SimInfo

console = Console()

TINY_PATCH = 16
"""Patch size of a new tiny policy in pixels."""

SHORT_STATE = 8
"""State dims that fit into a tiny policy's usual prompt, beside an instruction."""

SMALL_WIDTH = 512
"""VLM width below which a policy counts as small."""


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar with counts, elapsed and remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield progress, progress.add_task(description, total=total, note="")


def pick_device(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the first GPU, or the CPU.

    Raises:
        ConfigError: The device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; it must be 'cpu', 'cuda' or 'auto'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no GPU; choose --device cpu, or run z1 doctor")
    return torch.device(name)


def policy_folder(path: str) -> Path:
    """The policy folder that a path means: itself, or ``policy/`` inside a run folder.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(path)
    for candidate in (folder / "policy", folder):
        if has_weights(candidate):
            return candidate
    if not folder.exists():
        raise CheckpointError(f"policy {path} does not exist; give a run folder of z1 sft or z1 rl, or a policy folder")
    if (folder / "metrics.jsonl").exists():
        raise CheckpointError(
            f"run {path} has not finished and holds no policy yet; resume it with --resume, "
            f"or use {path}/checkpoints/last/policy"
        )
    raise CheckpointError(
        f"{path} holds no policy: model.safetensors is missing; give a run folder of z1 sft or z1 rl, "
        "or a policy folder"
    )


def policy_place(path: str) -> str | Path:
    """What ``--policy`` means: a name on the Hugging Face hub (``hf:owner/name``), or ``policy_folder``.

    Raises:
        CheckpointError: There is no such folder.
    """
    return path if path.startswith(HUB) else policy_folder(path)


def recipe_for_policy(path: str) -> str:
    """The name of the RL recipe made for a policy's size: ``tiny`` for a narrow VLM, else ``paper``.

    Args:
        path: What ``--policy`` says.

    Raises:
        CheckpointError: There is no policy, or it is damaged.
    """
    return "tiny" if open_checkpoint(policy_place(path)).sizes.vlm_width < SMALL_WIDTH else "paper"


def open_pool(policy: Policy, task: str, sim: SimConfig) -> SimPool:
    """Simulators that render what a policy sees.

    Raises:
        Z1Error: Unknown task or camera, missing simulator, or a task whose layout does not fit the policy.
    """
    spec = SimSpec(
        simulator=simulator_of(task),
        cameras=policy.processor.cameras,
        image_size=policy.config.image_size,
        horizon=sim.horizon,
        python=sim.python,
        quality=sim.quality,
    )
    pool = SimPool(spec, sim.hosts, timeout_s=sim.timeout_s)
    try:
        check_fit(policy, pool.info)
    except ConfigError:
        pool.close()
        raise
    return pool


def check_fit(policy: Policy, info: SimInfo) -> None:
    """Refuses a policy whose state or action width is not the simulator's.

    Raises:
        ConfigError: They differ.
    """
    for what, have, want in (
        ("state dims", policy.processor.state_dim, info.state_dim),
        ("action dims", policy.processor.action_dim, info.action_dim),
    ):
        if have != want:
            raise ConfigError(
                f"the policy has {have} {what}, but {info.simulator} has {want}; "
                f"choose a policy that was trained on {info.simulator}"
            )


def simulator_record(info: SimInfo) -> dict[str, Any]:
    """What a result file says about the simulator."""
    return {
        "simulator": info.simulator,
        "simulator_version": info.version,
        "renderer": info.renderer,
        "cameras": list(info.cameras),
        "image_size": info.image_size,
        "quality": info.quality,
        **({"scenes": info.protocol} if info.protocol else {}),
        **({"stand_ins": info.stand_ins} if info.stand_ins else {}),
    }


def run_demos(config: DemoConfig) -> DemoSummary:
    """``z1 demos``: records scripted experts' demonstrations."""
    with progress_bar("demonstrations", config.episodes * len(config.task)) as (bar, task):
        summary = record_demonstrations(
            config,
            on_progress=lambda p: bar.update(
                task, completed=p.episodes, note=f"{p.frames} frames, {p.failures} failures"
            ),
        )
    failures = sum(summary.failures.values())
    console.print(
        f"Dataset: {summary.path}: {summary.episodes} episodes ({summary.resumed} of them from an interrupted "
        "recording), "
        f"{summary.frames} frames recorded in {summary.seconds:.0f} s; the experts failed in {failures} scenes"
    )
    console.print(f"Next: z1 sft --dataset {summary.path} --recipe tiny --out runs/sft")
    return summary


def _import_note(progress: ImportProgress) -> str:
    return f"{progress.verified} episodes verified" if progress.verified else f"{progress.frames} frames"


def run_import(config: ImportConfig) -> ImportSummary:
    """``z1 import``: others' demonstrations as a dataset."""
    with progress_bar("import", None) as (bar, task):
        summary = import_dataset(
            config,
            on_progress=lambda p: bar.update(task, completed=p.episodes, total=p.total, note=_import_note(p)),
        )
    layout = summary.layout
    for found in summary.verified:
        for line in found.lines():
            console.print(line, soft_wrap=True, markup=False)
    console.print(
        f"Dataset: {summary.path}: {summary.episodes} episodes ({summary.resumed} of them from an interrupted import), "
        f"{summary.frames} frames stored in {summary.seconds:.0f} s; {len(layout.state_names)} state and "
        f"{len(layout.action_names)} action dims, cameras {', '.join(layout.cameras) or 'none'}, "
        f"{layout.height} x {layout.width} pixels",
        soft_wrap=True,
        markup=False,
    )
    for path in summary.assumed:
        console.print(
            f"Note: {path} has no meta/modality.json; its numbers were taken in the order of the published sets",
            soft_wrap=True,
            markup=False,
        )
    console.print(
        f"Next: z1 sft --dataset {summary.path} --recipe pi05 --policy POLICY --out runs/sft "
        "(or --recipe tiny: a new small policy)",
        soft_wrap=True,
        markup=False,
    )
    return summary


def run_sft(config: SftConfig, *, resume: bool = False) -> Path:
    """``z1 sft``: trains on one or more data sets.

    Returns:
        The run folder.
    """
    device = pick_device(config.device)
    config = replace(config, precision=settled_precision(config.precision, device))
    datasets = open_datasets(config.dataset)
    if resume:
        run = RunFolder.open(Path(config.out))
        check_resume(run.config, config, run.path, may_change=("device",))
        saved = run.last_checkpoint / "policy"
        policy = Policy.load(saved) if saved.exists() else _initial_sft_policy(config, datasets)
    else:
        policy = _initial_sft_policy(config, datasets)
        run = RunFolder.create(Path(config.out), config_to_dict(config), "sft")
    policy.to(device)
    for path, dataset in zip(config.dataset, datasets, strict=True):
        console.print(
            f"SFT on {path}: {len(dataset.episodes)} episodes, {dataset.num_frames} frames: {'; '.join(dataset.tasks)}"
        )
    console.print(f"{policy.parameter_count / 1e6:.2f} M parameters on {device} in {config.precision}")
    with ExitStack() as stack:
        with undone_on_error(run, resume=resume):
            metrics = stack.enter_context(MetricsWriter(run.path, wandb=config.wandb, resume=resume))
            bar, task = stack.enter_context(progress_bar("sft", config.steps))
            trainer = SftTrainer(
                config,
                policy,
                datasets,
                run.path,
                metrics,
                on_step=lambda step, loss: bar.update(task, completed=step, note=f"loss {loss:.4f}"),
            )
            if resume:
                trainer.resume()
        metrics.resume_at("sft/step", trainer.state.step)
        state = trainer.run()
        trainer.finish()
    console.print(f"Policy: {run.path / 'policy'}")
    if state.best is not None:
        console.print(
            f"Best validation loss {state.best:.4f} at step {state.best_step}: {run.best_checkpoint / 'policy'}"
        )
    console.print(f"Next: z1 eval --policy {run.path} --task TASK --out {run.path / 'evaluation.json'}")
    return run.path


def _initial_sft_policy(config: SftConfig, datasets: Sequence[LeRobotDataset]) -> Policy:
    """The policy that ``--policy`` names, or a new one for the data sets' cameras, state and action."""
    dataset, path = datasets[0], config.dataset[0]  # they are alike
    if config.policy:
        policy = open_policy(policy_place(config.policy))
        missing = [camera for camera in policy.processor.cameras if camera not in dataset.cameras]
        if missing:
            raise DatasetError(
                f"{path} has no camera {missing[0]!r}, which the policy looks through; "
                f"it has {', '.join(dataset.cameras)}"
            )
        for what, have, want in (
            ("state", dataset.state.shape[1], policy.processor.state_dim),
            ("action", dataset.action.shape[1], policy.processor.action_dim),
        ):
            if have != want:
                raise DatasetError(f"{path} has {have} {what} dims; the policy was made for {want}")
        return policy
    if not dataset.cameras:
        raise DatasetError(f"{path} has no camera; a policy needs the images of at least one")
    size = max(dataset.image_size(dataset.cameras[0]))
    if config.model == "tiny" and size % TINY_PATCH:
        raise DatasetError(
            f"{path} has images of {size} pixels; a new tiny policy needs a multiple of {TINY_PATCH}, "
            "record with another --image-size"
        )
    if config.model == "tiny":
        model = tiny_sizes(size, state_dim=dataset.state.shape[1], action_dim=dataset.action.shape[1])
    else:
        model = PolicyConfig.pi05()
    processor = ProcessorConfig.of_dataset(
        cameras=dataset.cameras,
        state_stats=feature_stats(datasets, STATE_KEY),
        action_stats=feature_stats(datasets, ACTION_KEY),
        normalization=config.normalization,
    )
    return Policy.create(model, processor, seed=config.seed)


def tiny_sizes(image_size: int, *, state_dim: int, action_dim: int) -> PolicyConfig:
    """Sizes of a new tiny policy: the usual ones, wider where a robot has many action dims or a long state to read."""
    usual = PolicyConfig.tiny()
    return PolicyConfig.tiny(
        image_size=image_size,
        patch=TINY_PATCH,
        action_dim=max(usual.action_dim, action_dim),
        max_tokens=usual.max_tokens if state_dim <= SHORT_STATE else 2 * usual.max_tokens,
    )


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
    console.print(
        f"Next: z1 eval --policy {config.policy} --policy {run.path} --task {config.task} "
        f"--out {run.path / 'evaluation.json'}; z1 report {run.path}"
    )
    return run.path


def _run_in_one_mode(config: RlConfig, policy: Policy, pool: SimPool, run: RunFolder, *, resume: bool) -> TrainingState:
    """Trains to the end with ``update.mode`` and puts the policy into place."""
    with ExitStack() as stack:
        with undone_on_error(run, resume=resume):
            metrics = stack.enter_context(MetricsWriter(run.path, wandb=config.wandb, resume=resume))
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
            metrics = stack.enter_context(MetricsWriter(run.path, wandb=config.wandb, resume=resume))
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


def run_eval(config: EvalConfig) -> dict[str, Any]:
    """``z1 eval``: the policies' success on the same scenes, as JSON and as a table.

    Returns:
        The evaluation, schema ``z1.evaluation/1``.
    """
    out = Path(config.out)
    _check_output(out, overwrite=config.overwrite)
    device = pick_device(config.device)
    for task in config.task:
        simulator_of(task)
        if config.task.count(task) > 1:
            raise ConfigError(f"task names {task} {config.task.count(task)} times; name each task once")
    places = [policy_place(path) for path in config.policy]
    policies = [open_policy(place, device=device) for place in places]
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
                protocol |= _protocol(config, pool.info, horizons)
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
            live_members=config.live_members,
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
    policies = [open_policy(policy_place(path)) for path in config.policy[:2]]
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


def _protocol(config: EvalConfig, info: SimInfo, horizons: dict[str, int]) -> dict[str, Any]:
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
        "instruction": config.instruction or "the task's own",
        **simulator_record(info),
    }
