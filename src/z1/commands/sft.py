"""``z1 sft``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from z1.commands.base import console, pick_device, policy_place, progress_bar
from z1.config import SftConfig, config_to_dict
from z1.convert import open_policy
from z1.data.lerobot import LeRobotDataset
from z1.data.lerobot_format import ACTION_KEY, STATE_KEY
from z1.data.mixture import feature_stats, open_datasets
from z1.errors import DatasetError
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.policy import Policy
from z1.train.metrics import MetricsWriter
from z1.train.resume import check_resume, undone_on_error
from z1.train.run_folder import RunFolder
from z1.train.sft import SftTrainer
from z1.train.trained import settled_precision

TINY_PATCH = 16
"""Patch size of a new tiny policy in pixels."""

SHORT_STATE = 8
"""State dims that fit into a tiny policy's usual prompt, beside an instruction."""


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
            metrics = stack.enter_context(
                MetricsWriter(run.path, wandb=config.wandb, config=config_to_dict(config), resume=resume)
            )
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
    qualities = {each.quality for each in datasets}
    processor = ProcessorConfig.of_dataset(
        cameras=dataset.cameras,
        state_stats=feature_stats(datasets, STATE_KEY),
        action_stats=feature_stats(datasets, ACTION_KEY),
        normalization=config.normalization,
        quality=qualities.pop() if len(qualities) == 1 else "",
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
