"""Supervised fine-tuning on demonstrations: the flow-matching loss over chunks of recorded actions.

Several data sets get equal shares: of any D samples in a row, D being their number, each gives one. Each is gone
through in permutations of its own, so a small one is seen more often than a large one; what a step sees follows from
the run seed and the number of the step alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from z1.algo.loss import flow_matching_error
from z1.config import SftConfig
from z1.data.lerobot import LeRobotDataset
from z1.data.mixture import Mixture
from z1.errors import ConfigError
from z1.policy import flow
from z1.policy.policy import Policy
from z1.seeding import Seeds
from z1.train.average import WeightAverage
from z1.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from z1.train.metrics import MetricsWriter, completed, read_metrics
from z1.train.trained import TrainedWeights, adapters_of
from z1.types import Observations

LAST, BEST = "checkpoints/last", "checkpoints/best"
VALIDATION_DRAWS = 256
FINAL_RATE = 0.01
LOG_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Every frame of some data sets, in memory.

    Attributes:
        images: uint8 ``[N, V, height, width, 3]``.
        state: float32 ``[N, S]``.
        instructions: N instructions.
    """

    images: np.ndarray
    state: np.ndarray
    instructions: tuple[str, ...]

    @classmethod
    def of(cls, mixture: Mixture, cameras: tuple[str, ...]) -> Frames:
        """Decodes the videos of some cameras.

        Raises:
            DatasetError: A camera or video is missing or damaged.
        """
        return cls(images=mixture.images(cameras), state=mixture.state, instructions=mixture.instructions)

    def observations(self, index: np.ndarray) -> Observations:
        """The observations of some frames."""
        return Observations(
            images=self.images[index],
            state=self.state[index],
            instructions=tuple(self.instructions[int(i)] for i in index),
        )


class SftTrainer:
    """Trains one policy on one or more data sets.

    Args:
        config: Settings.
        policy: The policy; its weights change.
        datasets: The demonstrations, D data sets that fit together.
        folder: The run folder.
        metrics: Where the records go.
        on_step: Called after each step with (steps done, loss).
    """

    def __init__(
        self,
        config: SftConfig,
        policy: Policy,
        datasets: Sequence[LeRobotDataset],
        folder: Path,
        metrics: MetricsWriter,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        self.config, self.policy, self.folder, self.metrics = config, policy, folder, metrics
        self._mixture = Mixture(datasets)
        self._on_step = on_step
        self._seeds = Seeds(config.seed)
        self._frames = Frames.of(self._mixture, policy.processor.cameras)
        parts = [self._split(number) for number in range(len(datasets))]
        self._train, self._held_out = [train for train, _ in parts], [held_out for _, held_out in parts]
        self.trained = TrainedWeights(
            policy.model,
            config.mode,
            precision=config.precision,
            learning_rate=config.learning_rate,
            vlm_learning_rate=config.vlm_learning_rate or config.learning_rate,
            adapters=adapters_of(config.mode, config.lora_rank, config.lora_alpha, self._seeds),
        )
        policy.model.recompute_activations(config.recompute_activations)
        groups = self.trained.groups
        self._peak_rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=config.weight_decay)
        self._parameters = [p for group in groups for p in group["params"]]
        self._average = WeightAverage(self.trained, config.ema_decay)
        self.state = TrainingState(step=0, best=None, best_step=-1, totals={})

    def run(self) -> TrainingState:
        """Trains to the last step, from the checkpoint's step after ``resume``."""
        config = self.config
        began, samples = time.perf_counter(), 0
        while self.state.step < config.steps:
            step = self.state.step
            rate = self._set_rate(step)
            loss, grad_norm = self._step(step)
            samples += config.batch_size
            self.state.step = step + 1
            self._on_step(self.state.step, loss)
            validates = self.state.step % config.validate_every == 0 or self.state.step == config.steps
            if not validates and self.state.step % LOG_EVERY:
                continue
            record = {
                "sft/step": self.state.step,
                "sft/loss": loss,
                "sft/grad_norm": grad_norm,
                "sft/learning_rate": rate,
                "sft/samples_per_s": samples / (time.perf_counter() - began),
            }
            if validates:
                record |= self._validate_and_save()
            self.metrics.write(record)
        return self.state

    def resume(self) -> None:
        """Continues from the last checkpoint of the run folder; from the start if the run ended before the first one.

        Raises:
            CheckpointError: The checkpoint is missing although the run has come that far, or it is damaged.
        """
        path = self.folder / LAST
        if not path.exists() and not self._has_validated():
            return
        self.state, extra = load_checkpoint(path, self.policy, self.trained, self.optimizer)
        self._average.load_state(extra, path)

    def finish(self) -> Path:
        """Saves the final weights (averaged ones when ``ema_decay`` is set) as ``policy/`` of the run folder."""
        with self._average.shown():
            self.policy.save(self.folder / "policy", replace=True, tensors=self.trained.tensors())
        return self.folder / "policy"

    def _has_validated(self) -> bool:
        """Whether the run folder's records tell of a validation, and so of a checkpoint."""
        path = self.folder / "metrics.jsonl"
        first = min(self.config.validate_every, self.config.steps)
        return path.exists() and any(completed(record) >= first for record in read_metrics(path))

    def _split(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame numbers of the training and of the held-out episodes of a data set."""
        dataset, config = self._mixture.datasets[number], self.config
        episodes = len(dataset.episodes)
        held_out = round(config.validation_fraction * episodes)
        if episodes - held_out < 1:
            of = f" in {config.dataset[number]}" if number else ""
            raise ConfigError(
                f"validation_fraction {config.validation_fraction} leaves no training episode of {episodes}{of}; "
                "lower it"
            )
        order = self._seeds.rng("sft", *_address(number), "split").permutation(episodes)
        in_held_out = np.isin(dataset.episode_index, order[:held_out])
        first = self._mixture.first_frame[number]
        return first + np.flatnonzero(~in_held_out), first + np.flatnonzero(in_held_out)

    def _set_rate(self, step: int) -> float:
        """Linear warmup, then a cosine to a hundredth of the peak; gives the action expert's."""
        config = self.config
        if step < config.warmup_steps:
            factor = (step + 1) / config.warmup_steps
        else:
            progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
            factor = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor
        return config.learning_rate * factor

    def _batch(self, step: int) -> np.ndarray:
        """Frame numbers of a step's batch: sample number s of the run comes from data set s modulo D."""
        size, count = self.config.batch_size, len(self._train)
        samples = np.arange(step * size, (step + 1) * size)
        index = np.empty(size, np.int64)
        for number in range(count):
            own = samples % count == number
            if own.any():
                turns = samples[own] // count
                index[own] = self._walk(number, int(turns[0]), int(turns[-1]) + 1)
        return index

    def _walk(self, number: int, first: int, last: int) -> np.ndarray:
        """Frame numbers of some of a data set's samples: every epoch is one permutation of its training frames."""
        frames = self._train[number]
        count = len(frames)
        rows = [
            self._seeds.rng("sft", *_address(number), "epoch", epoch).permutation(count)[
                max(first - epoch * count, 0) : last - epoch * count
            ]
            for epoch in range(first // count, (last - 1) // count + 1)
        ]
        return frames[np.concatenate(rows)]

    def _step(self, step: int) -> tuple[float, float]:
        rng = self._seeds.rng("sft", "step", step)
        observations = self._frames.observations(index := self._batch(step))
        if self.config.image_shift:
            observations = shift_images(observations, self.config.image_shift, rng)
        value = self._pass(observations, index, rng)
        norm_value = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.config.grad_clip))
        if not (math.isfinite(value) and math.isfinite(norm_value)):
            raise ConfigError(
                f"training diverged at step {step}: loss {value:g}, gradient norm {norm_value:g}; "
                f"start a new run with a lower learning_rate (it is {self.config.learning_rate:g})"
            )
        self.optimizer.step()
        self.trained.publish()
        self.optimizer.zero_grad(set_to_none=True)
        self._average.follow()
        return value, norm_value

    def _pass(self, observations: Observations, index: np.ndarray, rng: np.random.Generator) -> float:
        """Mean flow-matching loss of some frames and, where gradients are on, its gradient, one microbatch at a time.

        Steps beyond an episode's end do not count. Noise and times are drawn for all of them at once.
        """
        policy = self.policy
        chunks, padded = self._mixture.action_chunks(index, policy.config.horizon)
        actions = policy.normalize_actions(chunks)
        noise = torch.from_numpy(rng.standard_normal(tuple(actions.shape), dtype=np.float32)).to(actions)
        t = flow.sample_time(torch.from_numpy(rng.random(len(index), dtype=np.float32))).to(actions)
        mask = torch.from_numpy(~padded).to(actions.device)
        x_t, target = flow.interpolate(actions, noise, t), flow.target(actions, noise)
        total = 0.0
        for part in torch.arange(len(index)).split(self.config.microbatch or len(index)):
            prefix = policy.model.encode_prefix(policy.prepare(observations.rows(part.numpy())))
            velocity = policy.model.velocity(prefix, x_t[part], t[part])
            loss = flow_matching_error(velocity, target[part], mask[part]).sum() / len(index)
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        return total

    def _validate_and_save(self) -> dict[str, float]:
        record: dict[str, float] = {}
        with self._average.shown():
            losses = self._validation_losses()
            if losses:
                loss = sum(losses.values()) / len(losses)
                record["sft/validation_loss"] = loss
                if len(self._train) > 1:
                    record |= {f"sft/validation_loss/{number}": own for number, own in losses.items()}
                if self.state.best is None or loss < self.state.best:
                    self.state.best, self.state.best_step = loss, self.state.step
                    save_checkpoint(self.folder / BEST, self.policy, self.trained, self.optimizer, self.state)
        averages = self._average.state()
        save_checkpoint(
            self.folder / LAST, self.policy, self.trained, self.optimizer, self.state, extra_tensors=averages
        )
        return record

    @torch.no_grad()
    def _validation_losses(self) -> dict[int, float]:
        """By number of the data set, the loss on fixed held-out frames with fixed noise, comparable between steps."""
        return {number: self._validation_loss(number) for number, held in enumerate(self._held_out) if len(held)}

    def _validation_loss(self, number: int) -> float:
        rng, frames = self._seeds.rng("sft", *_address(number), "validation"), self._held_out[number]
        index = rng.choice(frames, size=VALIDATION_DRAWS, replace=len(frames) < VALIDATION_DRAWS)
        parts = np.array_split(index, math.ceil(len(index) / self.config.batch_size))
        losses = [self._pass(self._frames.observations(p), p, rng) * len(p) for p in parts]
        return sum(losses) / len(index)


def _address(number: int) -> tuple[str | int, ...]:
    """Where a data set's random draws branch off; the first one draws what it would draw alone."""
    return ("data set", number) if number else ()


def shift_images(observations: Observations, limit: int, rng: np.random.Generator) -> Observations:
    """Shifts each sample's images by up to ``limit`` pixels, the same for all its cameras; the edge is repeated.

    Args:
        observations: B observations.
        limit: Largest shift in pixels, along both axes.
        rng: Source of the shifts.

    Source: random shift of DrQ (arXiv 2004.13649).
    """
    padded = np.pad(observations.images, ((0, 0), (0, 0), (limit, limit), (limit, limit), (0, 0)), mode="edge")
    height, width = observations.images.shape[2:4]
    shifts = rng.integers(0, 2 * limit + 1, size=(len(observations), 2))
    images = np.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, shifts, strict=True)])
    return Observations(images=images, state=observations.state, instructions=observations.instructions)
