"""What must hold on real simulation: exact ratios, independence of hosts, exact resume, repair of lost hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import z1 as package
from command_line import TASK, z1
from z1.policy.trainable import is_expert
from z1.sims.pool import Member, SimPool
from z1.sims.snapshot import decode_snapshot, encode_snapshot
from z1.train.metrics import read_metrics
from z1.train.sft import SftTrainer
from z1.types import ChunkOutcome

SMALL = {
    "--iterations": "1",
    "--rollout.plan": "flat",
    "--rollout.prefix": "0",
    "--rollout.groups": "2",
    "--rollout.group-size": "4",
    "--rollout.filter-low": "0",
    "--rollout.filter-high": "1",
    "--sim.horizon": "40",
    "--sim.hosts": "1",
    "--validation.episodes": "2",
    "--validation.every": "2",
    "--update.learning-rate": "1e-3",
    "--update.target-kl": "100",
    "--update.epochs": "2",
}


def options(**changes: str) -> list[str]:
    """SMALL with changes, ``sim_hosts`` for ``--sim.hosts``."""
    named = {f"--{name.replace('__', '.').replace('_', '-')}": value for name, value in changes.items()}
    return [part for pair in {**SMALL, **named}.items() for part in pair]


def rl(policy: Path, out: Path, **changes: str) -> list[dict[str, Any]]:
    assert z1("rl", "--policy", policy, "--task", TASK, "--out", out, *options(**changes)) == 0
    return records_of(out)


def records_of(run: Path) -> list[dict[str, Any]]:
    """Without times."""
    records = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in record.items() if not key.startswith("time/")} for record in records]


def assert_equal_runs(first: Path, second: Path) -> None:
    assert records_of(first) == records_of(second)
    for name in ("policy/model.safetensors", "optimizer.safetensors", "extra.safetensors"):
        ours, theirs = ((run / "checkpoints" / "last" / name).read_bytes() for run in (first, second))
        assert ours == theirs, name


@pytest.fixture(scope="module")
def straight(sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iteration of expert-only GRPO on one host."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    rl(sft_run, folder)
    return folder


def moved(run: Path, start: Path) -> set[bool]:
    """For which parts weights changed: True for the action expert, False for the VLM."""
    before, after = (
        load_file(start / "policy" / "model.safetensors"),
        load_file(run / "checkpoints/last/policy/model.safetensors"),
    )
    return {is_expert(name) for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_ratios_and_what_trains_with_cached_prefixes(straight: Path, sft_run: Path) -> None:
    first, *iterations = records_of(straight)
    assert first["iteration"] == -1
    for record in iterations:
        assert record["update/first_ratio_max"] == 0.0
        assert 0 <= record["update/acting_log_prob_gap"] < 1e-3
        assert record["update/ratio_max"] > 0
        assert record["update/optimizer_steps"] == 2
        assert 0 < record["rollout/success"] < 1, "groups with both outcomes"
        assert record["rollout/groups_kept"] == 2
    assert moved(straight, sft_run) == {True}


@pytest.mark.parametrize("microbatch", ["5", "256"])
def test_ratios_and_what_trains_with_recomputed_prefixes(microbatch: str, sft_run: Path, tmp_path: Path) -> None:
    changes = {"update__mode": "joint", "update__microbatch": microbatch, "update__minibatch": "20"}
    record = rl(sft_run, tmp_path / "run", **changes)[-1]
    assert record["update/first_ratio_max"] == 0.0
    assert record["update/acting_log_prob_gap"] < 1e-3
    assert record["update/optimizer_steps"] >= 4
    assert moved(tmp_path / "run", sft_run) == {True, False}


@pytest.mark.parametrize("hosts", ["2", "4"])
def test_hosts_change_nothing(hosts: str, straight: Path, sft_run: Path, tmp_path: Path) -> None:
    rl(sft_run, tmp_path / "run", sim__hosts=hosts)
    assert_equal_runs(straight, tmp_path / "run")


def test_two_iterations_and_two_more_equal_four(sft_run: Path, tmp_path: Path) -> None:
    """Resumed with another number of hosts, which changes nothing either; and the policy it began with is gone."""
    settings = {"update__objective": "awfm", "update__mode": "joint"}
    rl(sft_run, tmp_path / "four", iterations="4", **settings)
    start = tmp_path / "start"
    start.symlink_to(sft_run)
    rl(start, tmp_path / "two", iterations="2", **settings)
    start.unlink()
    arguments = ["--resume", "--out", tmp_path / "two", "--iterations", "4", "--sim.hosts", "2"]
    assert z1("rl", *arguments) == 0
    assert [record["iteration"] for record in records_of(tmp_path / "two")] == [-1, 0, 1, 2, 3]
    assert_equal_runs(tmp_path / "four", tmp_path / "two")
    stored = json.loads((tmp_path / "two" / "config.json").read_text())["config"]
    assert (stored["iterations"], stored["sim"]["hosts"]) == (4, 2)


def test_trees_share_env_steps_and_do_not_depend_on_the_hosts(sft_run: Path, tmp_path: Path) -> None:
    changes = {"rollout__plan": "tree", "rollout__prefix": "2", "rollout__prefix_schedule": "adaptive"}
    runs = [tmp_path / hosts for hosts in ("1", "3")]
    for run in runs:
        records = rl(sft_run, run, sim__hosts=run.name, iterations="2", **changes)
    assert_equal_runs(*runs)
    assert records[-1]["rollout/prefix"] <= 2
    fixed = rl(sft_run, tmp_path / "fixed", rollout__plan="tree", rollout__prefix="2")[-1]
    assert fixed["update/first_ratio_max"] == 0.0
    assert fixed["rollout/prefix"] == 2
    assert 0 < fixed["rollout/shared_share"] < 0.5
    assert fixed["cost/env_steps"] < fixed["cost/env_steps_flat"]
    assert fixed["cost/denoise_steps"] == 4 * fixed["cost/chunks"]


@pytest.mark.parametrize("hosts", ["1", "2"])
def test_hosts_killed_in_mid_run_change_nothing(
    hosts: str, straight: Path, sft_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In validations and rollouts, also the only one: what ran there is put back, and every record is the same."""
    original, calls, pools = SimPool.step_chunk, [0], []

    def step_chunk(self: SimPool, members: list[Member], actions: np.ndarray) -> ChunkOutcome:
        calls[0] += 1
        if calls[0] % 4 == 2:
            pools.append(self)
            os.kill(self.host_pids[-1], signal.SIGKILL)
        return original(self, members, actions)

    monkeypatch.setattr(SimPool, "step_chunk", step_chunk)
    rl(sft_run, tmp_path / "run", sim__hosts=hosts)
    assert_equal_runs(straight, tmp_path / "run")
    assert pools[0].counters.host_restarts == len(pools) >= 3
    assert pools[0].counters.recovered_members > len(pools)


def test_physics_that_breaks_down_is_counted(sft_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member's state turns into NaN; the others of its group go on."""
    original, calls = SimPool.step_chunk, [0]

    def step_chunk(self: SimPool, members: list[Member], actions: np.ndarray) -> ChunkOutcome:
        calls[0] += 1
        if calls[0] == 2:
            snapshot = decode_snapshot(self.snapshot(members[0]))
            physics = snapshot.state.physics.copy()
            physics[20] = np.nan
            broken = replace(snapshot, state=replace(snapshot.state, physics=physics))
            poisoned = self.restore(members[0].scene, encode_snapshot(broken), host=self.host_of(members[0]))
            outcome = original(self, [poisoned, *members[1:]], actions)
            self.release([poisoned])
            return outcome
        return original(self, members, actions)

    monkeypatch.setattr(SimPool, "step_chunk", step_chunk)
    records = rl(sft_run, tmp_path / "run", validation__every="0")
    assert records[0]["rollout/invalid_members"] == 1
    assert records[0]["rollout/episodes"] == 7
    assert records[0]["rollout/groups_kept"] == 2
    assert records[0]["update/optimizer_steps"] == 2


def test_an_interrupted_run_can_be_continued(sft_run: Path, tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the simulator processes as well."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "z1.cli", "rl", "--policy", sft_run, "--task", TASK, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    with subprocess.Popen(
        [str(part) for part in [*command, *options(iterations="500")]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "metrics.jsonl").exists() and len(read_metrics(out / "metrics.jsonl")) >= 2:
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=120)
    assert process.returncode == 130
    assert shown.splitlines()[-1] == "interrupted; a run folder can be continued with --resume"
    assert "Traceback" not in shown
    done = read_metrics(out / "metrics.jsonl")[-1]["iteration"] + 1
    assert z1("rl", "--resume", "--out", out, "--iterations", str(done + 1)) == 0
    assert records_of(out)[-1]["iteration"] in (done, done - 1), "an iteration that was not saved is done again"
    assert (out / "policy" / "model.safetensors").exists()


def test_sft_resumes_as_a_command(
    demonstrations: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--dataset", demonstrations, "--policy", untrained, "--steps", "12", "--batch-size", "4"]
    common += ["--validate-every", "4", "--validation-fraction", "0.34", "--ema-decay", "0.9", "--image-shift", "2"]
    assert z1("sft", *common, "--out", tmp_path / "straight") == 0
    original, calls = SftTrainer._step, [0]

    def step(self: SftTrainer, number: int) -> tuple[float, float]:
        calls[0] += 1
        if calls[0] == 7:
            raise KeyboardInterrupt
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(SftTrainer, "_step", step)
        assert z1("sft", *common, "--out", tmp_path / "parts") == 130
    assert z1("sft", "--resume", "--out", tmp_path / "parts") == 0
    ours, theirs = (
        [
            {k: v for k, v in r.items() if k != "sft/samples_per_s"}
            for r in read_metrics(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("straight", "parts")
    )
    assert ours == theirs
    assert "sft/validation_loss" in ours[0]
    for name in (
        "policy/model.safetensors",
        "checkpoints/last/optimizer.safetensors",
        "checkpoints/last/extra.safetensors",
        "checkpoints/best/policy/model.safetensors",
    ):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
