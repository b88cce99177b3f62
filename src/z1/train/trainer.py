"""The RL loop. ``Trainer.run`` is its table of contents: collect, score, update, log, evaluate, save."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from z1.algo.advantage import GroupFilter
from z1.config import RlConfig, UpdateConfig, require
from z1.eval.evaluate import EpisodeResult, evaluate_policy
from z1.eval.stats import wilson
from z1.files import atomic_folder
from z1.machine import GIB, memory_gib
from z1.policy.pi05 import SUMMARY_LAYERS
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixCounters, PrefixStore
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import RolloutCost, RolloutGroup, Rollouts, TrainingBatch, build_training_batch
from z1.rollout.prefix import PrefixSchedule
from z1.rollout.scenes import SceneSource
from z1.rollout.tree import ChunkWeights, SegmentWeights
from z1.seeding import Seeds
from z1.sims.pool import SimPool
from z1.train.average import WeightAverage
from z1.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from z1.train.critic import Critic, explained_variance
from z1.train.learner import Learner, UpdateStats
from z1.train.metrics import MetricsWriter
from z1.train.objectives import make_objective
from z1.train.score import advantage_weights_of, critic_weights_of, group_returns, success_weights_of
from z1.train.selection import failure_modes
from z1.types import Scene

LAST, BEST = "checkpoints/last", "checkpoints/best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the loop is doing, for a progress display.

    Attributes:
        phase: ``rollout``, ``update`` or ``evaluation``.
        iteration: Number of the iteration, from 0.
        detail: A short text.
        metrics: The iteration's record once it is complete, otherwise empty.
    """

    phase: str
    iteration: int
    detail: str = ""
    metrics: dict[str, float | str] | None = None


def episode_chunks(config: RlConfig, pool: SimPool) -> int:
    """Chunks of an episode.

    Raises:
        ConfigError: ``rollout.prefix`` does not leave one to branch in.
    """
    chunks = -(-pool.horizon_of(config.task) // config.acting.chunk_length)
    allowed = f"less than the {chunks} chunks of an episode of {config.task}"
    require(config.rollout.prefix < chunks, "rollout.prefix", config.rollout.prefix, allowed)
    return chunks


class Trainer:
    """Improves one policy on one task.

    Args:
        config: Settings.
        policy: The policy to start from; its weights change.
        pool: The simulators.
        folder: The run folder.
        metrics: Where the records go.
        on_progress: Called as the loop goes on.
        probe_env_steps: Env steps after which the run ends in any case, while its schedules still follow the settings;
            0: no such limit.
    """

    def __init__(
        self,
        config: RlConfig,
        policy: Policy,
        pool: SimPool,
        folder: Path,
        metrics: MetricsWriter,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        probe_env_steps: int = 0,
    ) -> None:
        self.config = config
        self.policy = policy
        self.pool = pool
        self.folder = folder
        self.metrics = metrics
        self.seeds = Seeds(config.seed)
        self.state = TrainingState(step=0, best=None, best_step=-1, totals={})
        self._on_progress = on_progress
        self._ends_after = [limit for limit in (config.env_step_budget, probe_env_steps) if limit]
        objective = make_objective(
            config.update, config.acting, config.rollout, counted_dims=policy.counted_dims, seeds=self.seeds
        )
        self.learner = Learner(policy, objective, config.update, self.seeds, precision=config.precision)
        self.average = WeightAverage(self.learner.trained, config.update.ema_decay)
        self.store = prefix_store(policy, config.update)
        self._filter = GroupFilter(low=config.rollout.filter_low, high=config.rollout.filter_high)
        chunks = episode_chunks(config, pool)
        self.schedule = PrefixSchedule(config.rollout, chunks)
        self.scenes = SceneSource(config.task, self.seeds, config.rollout.replay)
        self.critic: Critic | None = None
        if config.rollout.advantage == "critic":
            vlm = policy.config.vlm
            summary = 2 * min(SUMMARY_LAYERS, vlm.depth) * vlm.kv_heads * vlm.head_dim
            self.critic = Critic(summary + policy.processor.state_dim + 1, chunks=chunks, seeds=self.seeds)

    def run(self) -> TrainingState:
        """Runs to the last iteration, from the checkpoint's iteration after ``resume``."""
        began = time.perf_counter() - self.state.totals.get("time/total_s", 0.0)
        if self.state.step == 0 and not (self.folder / "metrics.jsonl").exists():  # also after a stop inside _start
            self._start()
        while not self._finished():
            self._iterate(began)
        return self.state

    def _iterate(self, began: float) -> None:
        """One iteration; what it has collected is let go of before the next one collects."""
        iteration = self.state.step
        prefix = self.schedule.prefix(self.progress)
        rollouts = self.collect(iteration, prefix)
        valued = self.learn_values(rollouts, iteration)
        batch = self.score(rollouts)
        held = self._keep_prefixes(batch)
        stats = self.update(batch, iteration)
        self._keep_prefixes(None)
        self.schedule.observe(rollouts.groups)
        self.scenes.observe(rollouts.groups)
        self.state.step = iteration + 1
        record: dict[str, float | str] = {**self._record(iteration, rollouts, stats), "rollout/prefix": prefix}
        record |= {**valued, **held}
        before = self.state.totals.get("cost/env_steps", 0)
        self._count(rollouts.cost, stats)
        self.state.totals["time/total_s"] = time.perf_counter() - began
        if self._validation_is_due(before):
            record |= self.validate(iteration)
            self.state.totals["time/total_s"] = time.perf_counter() - began
        record |= self.state.totals
        self.metrics.write(record)
        self.save()
        self._on_progress(Progress(phase="iteration", iteration=iteration, metrics=record))

    def resume(self) -> None:
        """Continues from the last checkpoint of the run folder; from the start if the run ended before the first one.

        Raises:
            CheckpointError: The checkpoint is missing although the run has records, or it is damaged.
        """
        if (self.folder / LAST).exists() or (self.folder / "metrics.jsonl").exists():
            self.load(self.folder / LAST)

    def load(self, checkpoint: Path) -> None:
        """Continues from a checkpoint of a run with the same settings.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        self.state, extra = load_checkpoint(checkpoint, self.policy, self.learner.trained, self.learner.optimizer)
        self.average.load_state(_unprefixed(extra, "average"), checkpoint)
        kept = _unprefixed(extra, "objective")
        if self.store is not None:
            self.store.load_state(_unprefixed(extra, "store"))
        self.learner.objective.load_state({name: t.to(self.policy.device) for name, t in kept.items()}, self.store)
        for name, part in self._parts().items():
            part.load_state({key: t.numpy() for key, t in _unprefixed(extra, name).items()})

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0..1, by iterations or by the budget of env steps."""
        config = self.config
        shares = [self.state.step / config.iterations]
        if config.env_step_budget:
            shares.append(self.state.totals.get("cost/env_steps", 0) / config.env_step_budget)
        return min(max(shares), 1.0)

    def collect(self, iteration: int, prefix: int) -> Rollouts:
        """Runs an iteration's groups; groups without a signal are replaced by new scenes.

        Args:
            iteration: Its number.
            prefix: P, chunks until the last branch point.
        """
        settings = self.config.rollout
        collector = Collector(
            self.pool,
            self.policy,
            self.config.acting,
            live_members=settings.live_members,
            store=self.store,
            on_tick=lambda steps, groups: self._on_progress(
                Progress(phase="rollout", iteration=iteration, detail=f"{groups} groups, {steps} env steps")
            ),
        )
        return collector.collect(
            self.scenes.draw(iteration),
            self.seeds,
            ("iteration", iteration),
            plan=lambda number: self.schedule.plan(prefix, number),
            groups=settings.groups,
            explore=Exploration(
                noise_level=settings.noise_level,
                correlation=settings.noise_correlation,
                modes=settings.likelihood_modes,
                stochastic_steps=settings.stochastic_steps,
                group_noise=settings.initial_noise == "group",
                exclude_last_step=settings.exclude_last_step,
                summarise=self.critic is not None,
            ),
            keep=self.keeps,
            max_env_steps=self._env_steps_left(),
        )

    def _env_steps_left(self) -> int:
        """Env steps after which this iteration replaces no more groups: its own limit, or what the budget leaves.

        The end of a probe cuts no iteration short, so that the run that goes on from there is the one without a probe.
        """
        limit, budget = self.config.rollout.max_env_steps, self.config.env_step_budget
        spent = int(self.state.totals.get("cost/env_steps", 0))
        return min(limit, budget - spent) if budget else limit

    def keeps(self, group: RolloutGroup) -> bool:
        """The group filter: bounds on the mean return, and something to train on beyond what all members share."""
        within = self._filter.keeps(group_returns(group, self.config.rollout), group.valid)
        return within and (self.critic is not None or bool(self._compared(group).members.any()))

    def learn_values(self, rollouts: Rollouts, iteration: int) -> dict[str, float]:
        """Trains the critic, if there is one, on all groups; returns how well it knows those to train on."""
        if self.critic is None:
            return {}
        began = time.perf_counter()
        settings = self.config.rollout
        returns = [group_returns(group, settings) for group in rollouts.groups]
        self.critic.fit(rollouts.groups, returns, rollouts.ticks, iteration)
        values = [self.critic.values(group, rollouts.ticks) for group in rollouts.groups]
        self._add("time/critic_s", time.perf_counter() - began)
        return {"critic/explained_variance": explained_variance(rollouts.groups, returns, values)}

    def score(self, rollouts: Rollouts) -> TrainingBatch | None:
        """Returns, advantages, and the batch of chunks to train on (None when no group was kept)."""
        weights = self.weights(rollouts)
        return build_training_batch(rollouts.kept, weights, rollouts.ticks, self.config.acting.chunk_length)

    def weights(self, rollouts: Rollouts) -> list[ChunkWeights]:
        """What each chunk of the kept groups counts in the loss."""
        if self.critic is not None:
            values = [self.critic.values(group, rollouts.ticks) for group in rollouts.kept]
            return critic_weights_of(rollouts.kept, values, self.config.rollout)
        return [self._compared(group).spread(group.segment_lengths) for group in rollouts.kept]

    def _compared(self, group: RolloutGroup) -> SegmentWeights:
        """What each segment of a group counts where members are compared with each other."""
        if self.config.update.objective == "filtered_bc":
            return success_weights_of(group)
        return advantage_weights_of(group, self.config.rollout)

    def update(self, batch: TrainingBatch | None, iteration: int) -> UpdateStats | None:
        """Runs the update epochs, if there is anything to learn from."""
        if batch is None:
            return None
        self._on_progress(Progress(phase="update", iteration=iteration, detail=f"{len(batch)} chunks"))
        stats = self.learner.update(batch, iteration)
        self.average.follow()
        return stats

    def _keep_prefixes(self, batch: TrainingBatch | None) -> dict[str, float]:
        """Gives up the stored VLM prefixes of all but a batch and what the objective remembers.

        Returns:
            What the store then holds, as metrics.
        """
        if self.store is None:
            return {}
        batches = [*self.learner.objective.remembered(), *([batch] if batch is not None else [])]
        self.store.retain(number for b in batches if b.prefix is not None for number in b.prefix.ids.tolist())
        return {
            "rollout/prefix_observations": len(self.store),
            "rollout/prefix_device_bytes": self.store.device_bytes,
            "rollout/prefix_host_bytes": self.store.host_bytes,
        }

    def validate(self, iteration: int) -> dict[str, float | str]:
        """Evaluates on the validation scenes, and keeps the policy when it is the best so far: the averaged one, if
        weights are averaged.
        """
        with self.average.shown():
            return self._validate(iteration)

    def _validate(self, iteration: int) -> dict[str, float | str]:
        began = time.perf_counter()
        everything = self._evaluate(iteration)
        results = [r for r in everything if not r.invalid]
        successes = [r.success for r in results]
        rate = float(np.mean(successes))
        low, high = wilson(sum(successes), len(successes))
        if self.state.best is None or rate > self.state.best:
            self.state.best, self.state.best_step = rate, self.state.step
            self._save_to(BEST)
        self._add("time/eval_s", time.perf_counter() - began)
        steps = [r.steps for r in results if r.success]
        record: dict[str, float | str] = {"eval/success": rate, "eval/low": low, "eval/high": high}
        record |= {"eval/episodes": len(successes), "eval/outcomes": outcomes_text(everything)}
        return record | ({"eval/mean_steps_to_success": float(np.mean(steps))} if steps else {})

    def save(self) -> None:
        """Writes the full state, so that ``resume`` continues to the same numbers."""
        self._save_to(LAST)

    def finish(self) -> Path:
        """Puts the best policy (the last one when nothing was validated) into ``policy/`` of the run folder."""
        target = self.folder / "policy"
        if (self.folder / BEST).exists():
            with atomic_folder(target, replace=True) as temporary:
                shutil.copytree(self.folder / BEST / "policy", temporary, dirs_exist_ok=True)
        else:
            with self.average.shown():
                self.policy.save(target, replace=True, tensors=self.learner.trained.tensors())
        return target

    def _finished(self) -> bool:
        config, totals = self.config, self.state.totals
        spent_steps = any(totals.get("cost/env_steps", 0) >= limit for limit in self._ends_after)
        spent_time = config.time_budget_s and totals.get("time/total_s", 0.0) >= config.time_budget_s
        return bool(self.state.step >= config.iterations or spent_steps or spent_time)

    def _validation_is_due(self, before: float) -> bool:
        """Whether to validate now; ``before`` is the number of env steps at the last chance."""
        settings = self.config.validation
        if settings.every_env_steps:
            marks = (steps // settings.every_env_steps for steps in (before, self.state.totals["cost/env_steps"]))
            return len(set(marks)) > 1 or self._finished()
        return (settings.every > 0 and self.state.step % settings.every == 0) or self._finished()

    def _start(self) -> None:
        """Validates the policy to start from and writes the first checkpoint."""
        settings = self.config.validation
        validated = self.validate(-1) if settings.every or settings.every_env_steps else {}
        self.save()
        if validated:
            record: dict[str, float | str] = {"iteration": -1, **validated, **self.state.totals}
            self.metrics.write(record)
            self._on_progress(Progress(phase="iteration", iteration=-1, metrics=record))

    def _evaluate(self, iteration: int) -> list[EpisodeResult]:
        count = self.config.validation.episodes
        rollout = self.config.rollout
        scenes_in_rollouts = max(1, rollout.live_members // rollout.group_size)
        return evaluate_policy(
            self.pool,
            self.policy,
            self.config.acting,
            [Scene.of_split(self.config.task, "validation", i) for i in range(count)],
            seed=0,
            live_members=scenes_in_rollouts if self.pool.info.model_per_scene else rollout.live_members,
            on_tick=lambda steps, done: self._on_progress(
                Progress(phase="evaluation", iteration=iteration, detail=f"{done} of {count} episodes")
            ),
        )

    def _save_to(self, name: str) -> None:
        save_checkpoint(
            self.folder / name,
            self.policy,
            self.learner.trained,
            self.learner.optimizer,
            self.state,
            extra_tensors=self._extra() if name == LAST else None,
        )

    def _extra(self) -> dict[str, Tensor]:
        """State beyond weights and optimizer that an exact resume needs."""
        arrays = {f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.state().items()}
        objective = {f"objective.{name}": t for name, t in self.learner.objective.state().items()}
        objective |= {f"average.{name}": t for name, t in self.average.state().items()}
        return objective | self._stored() | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _stored(self) -> dict[str, Tensor]:
        """The stored VLM prefixes that the objective remembers."""
        if self.store is None:
            return {}
        prefixes = (batch.prefix for batch in self.learner.objective.remembered())
        ids = [number for prefix in prefixes if prefix is not None for number in prefix.ids.tolist()]
        return {f"store.{name}": t for name, t in self.store.state(ids).items()}

    def _parts(self) -> dict[str, PrefixSchedule | SceneSource | Critic]:
        """What has state of its own besides weights, optimizer and objective."""
        parts: dict[str, PrefixSchedule | SceneSource | Critic] = {"schedule": self.schedule, "scenes": self.scenes}
        return parts if self.critic is None else parts | {"critic": self.critic}

    def _add(self, key: str, value: float) -> None:
        self.state.totals[key] = self.state.totals.get(key, 0) + value

    def _count(self, cost: RolloutCost, stats: UpdateStats | None) -> None:
        counts = ("env_steps", "env_steps_flat", "renders", "policy_calls", "chunks", "vlm_prefixes", "denoise_steps")
        for name in counts:
            self._add(f"cost/{name}", getattr(cost, name))
        self._add("cost/gradient_chunks", stats.gradient_chunks if stats else 0)
        if self.store is not None:
            hits, self.store.counters = self.store.counters, PrefixCounters()
            self._add("cost/prefix_device_hits", hits.device_hits)
            self._add("cost/prefix_host_hits", hits.host_hits)
            self._add("cost/prefix_recomputed", hits.recomputed)
        self._add("time/rollout_s", cost.total_s)
        self._add("time/policy_s", cost.policy_s)
        self._add("time/overhead_s", cost.overhead_s)
        self._add("time/sim_s", cost.sim_s)
        self._add("time/render_s", cost.render_s)
        self._add("time/update_s", stats.seconds if stats else 0.0)

    def _record(self, iteration: int, rollouts: Rollouts, stats: UpdateStats | None) -> dict[str, float]:
        numbered = [(n, e) for n, group in enumerate(rollouts.groups) for e in group.episodes if not e.invalid]
        episodes = [episode for _, episode in numbered]
        returns = np.concatenate([group_returns(g, self.config.rollout)[g.valid] for g in rollouts.groups])
        record: dict[str, float] = {
            "iteration": iteration,
            "rollout/success": float(np.mean([e.success for e in episodes])),
            "rollout/return_mean": float(returns.mean()),
            "rollout/episodes": len(episodes),
            "rollout/mean_steps": float(np.mean([e.env_steps for e in episodes])),
            "rollout/shared_share": 1.0 - rollouts.cost.env_steps / max(rollouts.cost.env_steps_flat, 1),
            "rollout/groups_kept": len(rollouts.kept),
            "rollout/groups_dropped": len(rollouts.dropped),
            "rollout/invalid_members": sum(int((~g.valid).sum()) for g in rollouts.groups),
        }
        record |= failure_modes([e.nearest for e in episodes], [e.success for e in episodes], [n for n, _ in numbered])
        if self.schedule.parting is not None:
            record["rollout/parting_chunk"] = self.schedule.parting
        if stats is not None:
            record |= {
                "update/signal_chunks": stats.signal_chunks,
                "update/loss": stats.loss,
                "update/approx_kl": stats.approx_kl,
                "update/clip_fraction": stats.clip_fraction,
                "update/ratio_max": stats.ratio_max,
                "update/first_ratio_max": stats.first_ratio_max,
                "update/grad_norm": stats.grad_norm,
                "update/learning_rate": stats.learning_rate,
                "update/epochs_run": stats.epochs_run,
                "update/optimizer_steps": stats.optimizer_steps,
                "update/last_step_scale": stats.last_step_scale,
                "update/chunks": stats.chunks,
                "update/acting_log_prob_gap": stats.acting_log_prob_gap,
            }
        return record


def outcomes_text(results: list[EpisodeResult]) -> str:
    """One sign per result: 1 success, 0 failure, - lost by the simulator."""
    return "".join("-" if r.invalid else str(int(r.success)) for r in results)


def prefix_store(policy: Policy, update: UpdateConfig) -> PrefixStore | None:
    """Where VLM prefixes are kept; None when the VLM trains."""
    if update.mode != "expert":
        return None
    return PrefixStore(
        policy.model,
        device_bytes=int(update.prefix_device_gb * 1e9),
        host_bytes=int(min(update.prefix_host_gb * 1e9, memory_gib() * GIB / 2)),
    )


def _unprefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name starts with ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
