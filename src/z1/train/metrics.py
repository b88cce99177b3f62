"""Metrics of a run: the catalogue of every key, the writer, and the reader of metrics.jsonl.

metrics.jsonl is the record of a run; TensorBoard and Weights & Biases are mirrors of its numbers.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from z1.errors import MissingExtraError, RunFolderError
from z1.files import atomic_file, read_json, write_json

Value = float | int | str


class Metric(NamedTuple):
    """What a metric means.

    Attributes:
        unit: Its unit.
        text: Its meaning, in one sentence without a final stop.
    """

    unit: str
    text: str


METRICS: dict[str, Metric] = {
    "iteration": Metric("number", "RL iteration, from 0; -1 is the validation before the first update"),
    "rollout/success": Metric("0..1", "Success rate of the training rollouts, which explore; dropped groups included"),
    "rollout/episodes": Metric("episodes", "Valid training rollouts of the iteration, dropped groups included"),
    "rollout/prefix": Metric("chunks", "P, chunks until the last branch point; 0 with flat groups"),
    "rollout/parting_chunk": Metric("chunk", "Where successes and failures have parted; adaptive P only"),
    "rollout/shared_share": Metric("0..1", "Share of the episodes' env steps that sharing spared"),
    "rollout/groups_kept": Metric("groups", "Groups that were trained on"),
    "rollout/groups_dropped": Metric("groups", "Groups outside the filter on the mean return, replaced by new scenes"),
    "rollout/mean_steps": Metric("env steps", "Mean length of the training rollouts"),
    "rollout/return_mean": Metric("reward", "Mean return of the training rollouts"),
    "rollout/invalid_members": Metric("members", "Members lost to repeated host failures or to diverged physics"),
    "rollout/motion_failures": Metric(
        "episodes", "Failed training rollouts in which the gripper came as near the task's object as successes need"
    ),
    "rollout/grounding_failures": Metric("episodes", "Failed training rollouts in which it did not"),
    "rollout/failed_scenes": Metric("scenes", "Scenes with such failures of either kind"),
    "rollout/grounding_scenes": Metric("scenes", "Those of them in which most failures were grounding failures"),
    "rollout/prefix_observations": Metric(
        "observations", "Observations whose VLM prefix the update may use, each one once; expert mode only"
    ),
    "rollout/prefix_device_bytes": Metric("bytes", "Device memory that their stored VLM prefixes take"),
    "rollout/prefix_host_bytes": Metric("bytes", "Host memory that their stored VLM prefixes take, in whole slots"),
    "critic/explained_variance": Metric(
        "0..1", "Share of the returns' variance that the critic explains, over all chunks of scenes it never trained on"
    ),
    "update/loss": Metric("loss", "Loss of the first minibatch, before its optimizer step"),
    "update/approx_kl": Metric("nats", "KL divergence from the behaviour policy, estimated on the last minibatch"),
    "update/clip_fraction": Metric("0..1", "Share of chunks whose gradient was clipped, last minibatch"),
    "update/ratio_max": Metric("ratio", "Largest deviation of a likelihood ratio from 1 during the update"),
    "update/first_ratio_max": Metric("ratio", "Largest deviation from 1 before the first optimizer step; exactly 0"),
    "update/grad_norm": Metric("norm", "Mean global gradient norm before clipping"),
    "update/learning_rate": Metric("1", "Learning rate of the action expert"),
    "update/epochs_run": Metric("epochs", "Update epochs begun; fewer than configured after an early stop on the KL"),
    "update/optimizer_steps": Metric("steps", "Optimizer steps taken"),
    "update/last_step_scale": Metric("0..1", "What update.shorten_last_step left of the last optimizer step"),
    "update/chunks": Metric("chunks", "Chunks in the training batch"),
    "update/signal_chunks": Metric("chunks", "Chunks of the batch whose members' advantages do not add up to zero"),
    "update/acting_log_prob_gap": Metric(
        "nats", "Largest difference between a log_prob recorded while acting and the same one recomputed for the update"
    ),
    "eval/success": Metric("0..1", "Success rate on the validation scenes, deterministic denoising"),
    "eval/low": Metric("0..1", "Lower limit of the 95 % Wilson interval of eval/success"),
    "eval/high": Metric("0..1", "Upper limit of the 95 % Wilson interval of eval/success"),
    "eval/outcomes": Metric(
        "text", "One sign per validation scene, in order: 1 success, 0 failure, - lost by the simulator"
    ),
    "eval/episodes": Metric("episodes", "Valid validation episodes"),
    "eval/mean_steps_to_success": Metric("env steps", "Mean env steps to the first success, of successful episodes"),
    "cost/env_steps": Metric("env steps", "Executed in training rollouts so far; a shared stretch counts once"),
    "cost/env_steps_flat": Metric("env steps", "What the same episodes would have cost without shared segments so far"),
    "cost/renders": Metric("images", "Camera images rendered for training rollouts so far"),
    "cost/policy_calls": Metric("calls", "Batched policy calls of training rollouts so far"),
    "cost/chunks": Metric("chunks", "Chunks sampled for training rollouts so far"),
    "cost/vlm_prefixes": Metric("prefixes", "VLM prefixes computed while acting so far"),
    "cost/denoise_steps": Metric("steps", "Denoise steps of the action expert so far, counted per sample"),
    "cost/prefix_device_hits": Metric("rows", "Rows of update passes whose VLM prefix lay in device memory so far"),
    "cost/prefix_host_hits": Metric("rows", "Rows of update passes whose VLM prefix lay in host memory so far"),
    "cost/prefix_recomputed": Metric("prefixes", "Stored observations that update passes encoded again so far"),
    "cost/gradient_chunks": Metric("chunks", "Chunks that went through a backward pass so far, every pass counted"),
    "cost/lost_probe_env_steps": Metric(
        "env steps", "Those of cost/env_steps that went into the probe that selection decided against"
    ),
    "time/rollout_s": Metric("seconds", "Wall-clock of collecting rollouts so far"),
    "time/update_s": Metric("seconds", "Wall-clock of updates so far"),
    "time/eval_s": Metric("seconds", "Wall-clock of validation so far"),
    "time/sim_s": Metric("seconds", "Stepping the simulators so far, measured inside the hosts and summed over them"),
    "time/render_s": Metric("seconds", "Rendering so far, measured inside the hosts and summed over them"),
    "time/policy_s": Metric("seconds", "Policy calls during rollouts so far, part of time/rollout_s"),
    "time/critic_s": Metric("seconds", "Training the critic, so far"),
    "time/overhead_s": Metric(
        "seconds", "Planning, branching and bookkeeping of rollouts so far: neither policy nor simulators"
    ),
    "time/total_s": Metric("seconds", "Wall-clock of the run so far, pauses between stop and resume left out"),
    "sft/step": Metric("steps", "Optimizer steps done"),
    "sft/loss": Metric("loss", "Flow-matching loss of the step's batch"),
    "sft/validation_loss": Metric(
        "loss", "Flow-matching loss on held-out episodes, with fixed frames and noise; the mean over data sets"
    ),
    "sft/validation_loss/N": Metric("loss", "The same of data set number N, from 0, when there are several"),
    "sft/learning_rate": Metric("1", "Learning rate of the step"),
    "sft/grad_norm": Metric("norm", "Global gradient norm before clipping"),
    "sft/samples_per_s": Metric("samples/s", "Training speed since the start or the last resume"),
}
"""Every key of metrics.jsonl; docs/metrics.md is made from it and a test compares the two."""

GROUPS: dict[str, str] = {
    "iteration": "Where a record belongs",
    "rollout": "Training rollouts of the iteration",
    "critic": "The critic of the iteration",
    "update": "The update of the iteration",
    "eval": "Validation on fixed scenes",
    "cost": "Work done so far (cumulative)",
    "time": "Time spent so far (cumulative)",
    "sft": "Supervised fine-tuning",
}


def described(key: str) -> str:
    """The key under which ``METRICS`` describes a metric: a number at the end stands there as ``N``."""
    stem, _, last = key.rpartition("/")
    return f"{stem}/N" if last.isdigit() else key


def metrics_markdown() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Each line of `metrics.jsonl` in a run folder is one JSON object: an RL iteration or a logged SFT step. Keys",
        "that do not apply to a record are absent. TensorBoard and Weights & Biases show the same numbers against the",
        "number of completed iterations or steps.",
        "",
        "This page is made from `z1.train.metrics.METRICS`: `python -m z1.train.metrics > docs/metrics.md`.",
    ]
    for group, title in GROUPS.items():
        lines += ["", f"## {title}", "", "| key | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{k}` | {m.unit} | {m.text} |" for k, m in METRICS.items() if k.split("/")[0] == group]
    return "\n".join(lines) + "\n"


def completed(record: Mapping[str, Any]) -> int:
    """Iterations (RL) or optimizer steps (SFT) that are done once this record is written.

    Raises:
        ValueError: The record has neither ``iteration`` nor ``sft/step``.
    """
    if "iteration" in record:
        return int(record["iteration"]) + 1
    if "sft/step" in record:
        return int(record["sft/step"])
    raise ValueError("a metrics record needs 'iteration' or 'sft/step'")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, in order. A torn last line, left by a crash while writing it, is ignored.

    Args:
        path: The file.

    Raises:
        RunFolderError: The file is missing, or a line before the last one is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: the run has logged nothing yet") from None
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise RunFolderError(f"{path} line {number} is not a JSON object; remove the line or restore a copy")
    return records


class Sink(Protocol):
    """A mirror of the numbers."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows values at a step."""

    def close(self) -> None:
        """Writes out what is pending."""


class TensorBoardSink:
    """Mirrors numbers to TensorBoard event files.

    Args:
        folder: Folder of the event files.
        purge_after: On resume, events after this step are hidden.
    """

    def __init__(self, folder: Path, purge_after: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=None if purge_after is None else purge_after + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one scalar per value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, global_step=step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandbSink:
    """Mirrors numbers to Weights & Biases; a resumed run continues the same W&B run.

    Args:
        folder: The run folder. ``wandb.json`` in it keeps the id of the W&B run.
        config: Settings to show with the run.

    Raises:
        MissingExtraError: The package ``wandb`` is not installed.
    """

    PROJECT = "z1"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtraError(
                'logging to Weights & Biases needs the package wandb; install it: pip install "wandb>=0.19"'
            ) from None
        identity = folder / "wandb.json"
        known = read_json(identity, RunFolderError)["id"] if identity.exists() else None
        self._run = wandb.init(
            project=self.PROJECT, name=folder.name, id=known, resume="allow", dir=str(folder), config=dict(config)
        )
        self._run.define_metric("*", step_metric="completed")
        if known is None:
            write_json(identity, {"id": self._run.id})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values against the number of completed iterations or steps."""
        self._run.log({**values, "completed": step})

    def close(self) -> None:
        """Uploads what is pending."""
        self._run.finish()


class MetricsWriter:
    """Appends records to metrics.jsonl and mirrors their numbers.

    Args:
        folder: The run folder.
        tensorboard: Whether to mirror to TensorBoard.
        wandb: Whether to mirror to Weights & Biases.
        config: Settings to show with the W&B run.
        resume: Whether the folder's records are continued; ``resume_at`` then comes before the first write.

    Raises:
        MissingExtraError: W&B is asked for and not installed.
        RunFolderError: metrics.jsonl exists although the run is not resumed, or is damaged, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = True,
        wandb: bool = False,
        config: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._tensorboard = tensorboard
        self._sinks: list[Sink] = [WandbSink(folder, config or {})] if wandb else []
        self._opened = False
        self._purge_after: int | None = None
        self._last: int | None = None
        if self._path.exists():
            if not resume:
                raise RunFolderError(f"{self._path} exists already; choose another --out, or continue it with --resume")
            self._keep(read_metrics(self._path))

    def resume_at(self, key: str, step: int) -> None:
        """Forgets the records of work beyond the checkpoint, which will be done again.

        Args:
            key: What the run counts, ``iteration`` or ``sft/step``.
            step: How many of them the checkpoint has completed.
        """
        assert not self._opened, "resume_at comes before the first write"
        assert key in ("iteration", "sft/step"), key
        records = read_metrics(self._path) if self._path.exists() else []
        kept = [r for r in records if key in r and completed(r) <= step]
        if len(kept) < len(records):
            self._keep(kept)
        self._purge_after = step

    def write(self, record: Mapping[str, Value]) -> None:
        """Appends a record; it is on disk when this returns.

        Args:
            record: Keys of ``METRICS``, finite numbers or strings, with ``iteration`` or ``sft/step``.

        Raises:
            ValueError: An unknown key, a number that is not finite, or a record older than the last one.
            TypeError: A value that is neither a number nor a string.
            RunFolderError: The file cannot be written.
        """
        values = {key: _plain(key, value) for key, value in record.items()}
        step = completed(values)
        if self._last is not None and step < self._last:
            raise ValueError(
                f"record of step {step} after step {self._last} in {self._path}; on resume call resume_at first"
            )
        self._open()
        self._append(json.dumps(values, allow_nan=False) + "\n")
        self._last = step
        shown = {k: float(v) for k, v in values.items() if not isinstance(v, str)}
        for sink in self._sinks:
            sink.write(step, shown)

    def close(self) -> None:
        """Closes the mirrors; the file itself is always complete."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Starts TensorBoard with the first record, since importing it takes seconds."""
        if not self._opened and self._tensorboard:
            self._sinks.append(TensorBoardSink(self._folder / "tensorboard", self._purge_after))
        self._opened = True

    def _keep(self, records: list[dict[str, Any]]) -> None:
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records), encoding="utf-8")
        self._last = completed(records[-1]) if records else None

    def _append(self, line: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self._path}: {error.strerror}; free some space, then continue with --resume"
            ) from error


def _plain(key: str, value: object) -> Value:
    """A JSON value of a metric."""
    if described(key) not in METRICS:
        raise ValueError(f"metric {key!r} is not in z1.train.metrics.METRICS; describe it there first")
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"metric {key!r} must be a number or a string, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"metric {key!r} is {number}; leave out what is undefined, and stop a run that diverged")
    return number


if __name__ == "__main__":
    print(metrics_markdown(), end="")
