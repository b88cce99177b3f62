"""Selective joint training: probes as short runs of their own, a decision, the rest of the run in the mode that won.

    probes/start ─► probes/expert ─► rule ─┬─► expert wins ───────────────────────────────┐
                │                          └─► probes/joint ─► paired validation ─► winner ─┴─► run folder, to the end
                └──────────────────────────────────┘

A probe is an ordinary run in a folder of its own, and resumes as such. Both probes start from the same weights and see
the same scenes. The winner's checkpoint and records become the run's; the loser's env steps are added to its cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from z1.config import RlConfig, UpdateConfig
from z1.files import atomic_folder, write_json
from z1.policy.policy import Policy
from z1.sims.pool import SimPool
from z1.train.checkpoint import TrainingState
from z1.train.metrics import MetricsWriter, read_metrics
from z1.train.run_folder import RunFolder
from z1.train.selection import NAMES, VLM_RATE, after_expert_probe, decide, describe, read_inputs
from z1.train.trainer import BEST, LAST, Progress, Trainer

Mode = Literal["expert", "joint"]

PROBES, START = "probes", "probes/start"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveRun:
    """A run with ``selection: auto``.

    Attributes:
        config: Settings.
        load: Loads a policy from a place, anew with each call.
        start: Where the policy to start from is; used once, then the run keeps a copy.
        pool: The simulators.
        folder: The run folder.
        on_progress: Called as the loop goes on.
        on_phase: Called with one line when a probe or the rest of the run begins, and with the decision.
    """

    config: RlConfig
    load: Callable[[str | Path], Policy]
    start: str | Path
    pool: SimPool
    folder: Path
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_phase: Callable[[str], None] = lambda text: None

    def run(self, metrics: MetricsWriter) -> TrainingState:
        """Probes, decides, trains to the end and puts the policy into place; continues where it was stopped.

        Args:
            metrics: Where the run's records go; nothing was written with it yet.
        """
        selection = self.select()
        trainer = self.go_on(selection, metrics)
        state = trainer.run()
        trainer.finish()
        return state

    def select(self) -> dict[str, Any]:
        """The decision; made now unless the run folder has one."""
        run = RunFolder(self.folder)
        if (known := run.selection) is not None:
            return known
        self._keep_start()
        expert = self._probe("expert")
        joint = self._probe("joint") if after_expert_probe(read_inputs(expert)).joint else None
        selection = decide(expert, joint)
        write_json(run.selection_path, selection)
        self.on_phase(f"Selection: {describe(selection)}")
        return selection

    def go_on(self, selection: dict[str, Any], metrics: MetricsWriter) -> Trainer:
        """The trainer of the rest of the run: at the run's checkpoint, or at the end of the probe that won."""
        probe = self.folder / PROBES / selection["decision"]
        config = mode_config(self.config, selection["decision"])
        goes_on = (self.folder / LAST).exists()
        policy = self.load(self.folder / LAST / "policy") if goes_on else self._policy()
        trainer = Trainer(config, policy, self.pool, self.folder, metrics, self.on_progress)
        if goes_on:
            trainer.resume()
            metrics.resume_at("iteration", trainer.state.step)
            return trainer
        metrics.resume_at("iteration", -1)  # whatever was copied before a stop is copied again
        trainer.load(probe / LAST)
        self._count_lost(selection, trainer.state)
        *records, last = read_metrics(probe / "metrics.jsonl")
        for record in [*records, last | trainer.state.totals]:
            metrics.write(record)
        with atomic_folder(self.folder / BEST, replace=True) as temporary:
            shutil.copytree(probe / BEST, temporary, dirs_exist_ok=True)
        trainer.save()
        return trainer

    def _policy(self) -> Policy:
        return self.load(self.folder / START / "policy")

    def _keep_start(self) -> None:
        """A copy of the policy to start from, so that both probes have the same, whatever happens to the original."""
        if not (self.folder / START).exists():
            with atomic_folder(self.folder / START) as temporary:
                self.load(self.start).save(temporary / "policy")

    def _probe(self, mode: Mode) -> list[dict[str, Any]]:
        """Runs a probe to its end, and returns its records."""
        folder, steps = self.folder / PROBES / mode, self.config.probe_env_steps
        began = (folder / "metrics.jsonl").exists()
        self.on_phase(f"Probe of {NAMES[mode]} training, {steps:,} env steps")
        with MetricsWriter(folder, tensorboard=False, resume=began) as metrics:
            trainer = Trainer(
                mode_config(self.config, mode),
                self._policy(),
                self.pool,
                folder,
                metrics,
                self.on_progress,
                probe_env_steps=steps,
            )
            trainer.resume()
            metrics.resume_at("iteration", trainer.state.step)
            trainer.run()
        return read_metrics(folder / "metrics.jsonl")

    def _count_lost(self, selection: dict[str, Any], state: TrainingState) -> None:
        """Adds what the probe that lost has cost to the totals of the one that won."""
        lost = selection["counterfactual"]["mode"]
        if selection["counterfactual"]["probe"] is None:
            return
        totals = read_metrics(self.folder / PROBES / lost / "metrics.jsonl")[-1]
        for key, value in totals.items():
            if key.startswith(("cost/", "time/")):
                state.totals[key] = state.totals.get(key, 0) + value
        state.totals["cost/lost_probe_env_steps"] = selection["lost_env_steps"]


def mode_config(config: RlConfig, mode: Mode) -> RlConfig:
    """Settings of an ordinary run in a mode: for ``joint``, the VLM's learning rate is ``VLM_RATE`` of the expert's."""
    update = config.update
    if mode == "joint":
        usual = UpdateConfig()
        update = replace(
            update,
            mode="joint",
            vlm_learning_rate=VLM_RATE * update.learning_rate,
            prefix_device_gb=usual.prefix_device_gb,
            prefix_host_gb=usual.prefix_host_gb,
        )
    return replace(config, update=update, selection="off", probe_env_steps=0)
