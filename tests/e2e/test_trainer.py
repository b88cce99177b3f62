"""The RL loop on the toy simulator: exact resume, interruptions, empty batches, budgets, lost members."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toy import HORIZON, TASK, ToyDemonstrations, ToyPool, toy_policy
from z1.config import ActingConfig, RlConfig, RolloutConfig, SftConfig, UpdateConfig, ValidationConfig
from z1.errors import CheckpointError, ConfigError
from z1.rollout import prefix
from z1.rollout.scenes import SceneSource
from z1.train import critic
from z1.train.critic import Critic
from z1.train.learner import Learner
from z1.train.metrics import MetricsWriter, read_metrics
from z1.train.sft import SftTrainer
from z1.train.trainer import BEST, LAST, Trainer

CONFIG = RlConfig(
    policy="start",
    task=TASK,
    out="run",
    iterations=4,
    acting=ActingConfig(denoise_steps=4, chunk_length=4),
    rollout=RolloutConfig(groups=4, group_size=4, filter_low=0.05, filter_high=0.95, max_env_steps=2000),
    update=UpdateConfig(learning_rate=1e-3, epochs=2, target_kl=1e3),
    validation=ValidationConfig(every=2, episodes=4),
)
SFT = SftConfig(dataset=("toy",), out="run", steps=24, batch_size=16, warmup_steps=4, validate_every=6, image_shift=1)


def by_luck(scene: Any, member: int) -> bool:
    """Outcomes that do not depend on the policy, mixed in two groups of three."""
    return scene.seed % 3 > 0 and (scene.seed // 3 + member) % 2 == 0


def rl(
    folder: Path, config: RlConfig = CONFIG, *, resume: bool = False, pool: ToyPool | None = None
) -> list[dict[str, Any]]:
    """Runs, or continues, and returns the records without times."""
    with MetricsWriter(folder, tensorboard=False, resume=resume) as metrics:
        trainer = Trainer(config, toy_policy(), pool or ToyPool(outcome=by_luck), folder, metrics)  # type: ignore[arg-type]
        if resume:
            trainer.resume()
        metrics.resume_at("iteration", trainer.state.step)
        trainer.run()
        trainer.finish()
    return records_of(folder)


def sft(folder: Path, config: SftConfig = SFT, *, resume: bool = False) -> list[dict[str, Any]]:
    with MetricsWriter(folder, tensorboard=False, resume=resume) as metrics:
        trainer = SftTrainer(config, toy_policy(), [ToyDemonstrations(episodes=8)], folder, metrics)  # type: ignore[arg-type]
        if resume:
            trainer.resume()
        metrics.resume_at("sft/step", trainer.state.step)
        trainer.run()
        trainer.finish()
    return records_of(folder)


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    return [
        {key: value for key, value in record.items() if not key.startswith("time/") and key != "sft/samples_per_s"}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def state_of(folder: Path) -> dict[str, Any]:
    """Everything of the last checkpoint: tensors as bytes, the rest without times."""
    last = folder / LAST
    state = json.loads((last / "state.json").read_text())
    state["totals"] = {key: value for key, value in state["totals"].items() if not key.startswith("time/")}
    tensors = ("policy/model.safetensors", "optimizer.safetensors", "extra.safetensors")
    return {"state": state, **{name: (last / name).read_bytes() for name in tensors}}


def assert_equal_runs(first: Path, second: Path) -> None:
    assert records_of(first) == records_of(second)
    ours, theirs = state_of(first), state_of(second)
    assert ours["state"] == theirs["state"]
    for name in ours:
        assert ours[name] == theirs[name], name
    finished = "policy/model.safetensors"
    assert (first / finished).read_bytes() == (second / finished).read_bytes()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, cls: type, name: str, calls: int) -> None:
    """Makes the call number ``calls`` (from 0) of a method end like Ctrl-C."""
    original, done = getattr(cls, name), [0]

    def method(*arguments: Any, **named: Any) -> Any:
        done[0] += 1
        if done[0] > calls:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(cls, name, method)


UPDATES = {
    "grpo": replace(CONFIG.update, minibatch=10),
    "awfm": replace(CONFIG.update, objective="awfm"),
    "grpo-joint": replace(CONFIG.update, mode="joint", microbatch=7),
    "awfm-joint": replace(CONFIG.update, objective="awfm", mode="joint_frozen_vision"),
    "filtered_bc": replace(CONFIG.update, objective="filtered_bc"),
    "awfm, prefixes in three places": replace(
        CONFIG.update, objective="awfm", prefix_device_gb=1e-4, prefix_host_gb=1e-4
    ),
    "awfm-negative": replace(CONFIG.update, objective="awfm", awfm_negative=0.5, microbatch=16),
}

TREES = replace(
    CONFIG,
    acting=ActingConfig(denoise_steps=4, chunk_length=1),
    rollout=replace(CONFIG.rollout, groups=2, plan="tree", prefix=6, advantage="tree", stochastic_steps=2),
)
"""Episodes of eight chunks, of which the first 1, 3 and 6 or fewer are shared."""

RUNS = {name: replace(CONFIG, update=update) for name, update in UPDATES.items()} | {
    "lora": replace(CONFIG, update=replace(CONFIG.update, mode="lora", lora_rank=2)),
    "lora, bfloat16": replace(
        CONFIG, update=replace(CONFIG.update, mode="lora", recompute_activations=True), precision="bfloat16"
    ),
    "bfloat16": replace(CONFIG, update=UPDATES["grpo-joint"], precision="bfloat16"),
    "bfloat16, frozen VLM": replace(CONFIG, update=UPDATES["awfm"], precision="bfloat16"),
    "replayed scenes": replace(CONFIG, rollout=replace(CONFIG.rollout, groups=3, replay=0.9)),
    "shortened steps": replace(CONFIG, update=replace(UPDATES["grpo"], target_kl=1e-4, shorten_last_step=True)),
    "averaged": replace(CONFIG, update=replace(UPDATES["grpo"], ema_decay=0.6)),
    "averaged, bfloat16": replace(CONFIG, update=replace(UPDATES["grpo-joint"], ema_decay=0.6), precision="bfloat16"),
    "slow movements": replace(
        CONFIG, rollout=replace(CONFIG.rollout, stochastic_steps=2, noise_correlation=0.9, likelihood_modes=1)
    ),
    "critic": replace(CONFIG, update=UPDATES["grpo"], rollout=replace(CONFIG.rollout, advantage="critic")),
    "tree, critic, joint": replace(
        TREES, update=UPDATES["grpo-joint"], rollout=replace(TREES.rollout, advantage="critic", critic_decay=0.5)
    ),
    "tree": replace(TREES, update=UPDATES["grpo"]),
    "tree, linear": replace(
        TREES, update=UPDATES["awfm-negative"], rollout=replace(TREES.rollout, prefix_schedule="linear")
    ),
    "tree, adaptive": replace(
        TREES, update=UPDATES["awfm-negative"], rollout=replace(TREES.rollout, prefix_schedule="adaptive")
    ),
    "shared prefix, adaptive": replace(
        TREES,
        update=UPDATES["grpo-joint"],
        rollout=replace(CONFIG.rollout, groups=2, plan="shared_prefix", prefix=6, prefix_schedule="adaptive"),
    ),
}


@pytest.fixture(autouse=True)
def brief_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic that learns for a tenth of the usual time: here it need not be good, only the same."""
    monkeypatch.setattr(critic, "STEPS", 30)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adaptive schedule that finds a parting in every iteration, at a chunk that depends on all it has in memory."""
    monkeypatch.setattr(prefix, "parting_chunk", lambda opposite, alike: 2 + int(1e4 * (opposite + alike).sum()) % 5)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("name", RUNS)
def test_two_iterations_and_two_more_equal_four(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RUNS[name]
    straight = rl(tmp_path / "straight", config)
    assert [record["iteration"] for record in straight] == [-1, 0, 1, 2, 3]
    assert all(record["update/optimizer_steps"] > 0 for record in straight[1:])
    if config.rollout.prefix_schedule == "linear":  # it follows from the number of iterations, which must stay
        with monkeypatch.context() as patch:
            interrupt_after(patch, Learner, "update", 2)
            with pytest.raises(KeyboardInterrupt):
                rl(tmp_path / "parts", config)
    else:
        rl(tmp_path / "parts", replace(config, iterations=2))
    assert [record["iteration"] for record in records_of(tmp_path / "parts")] == [-1, 0, 1]
    rl(tmp_path / "parts", config, resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")
    start = toy_policy().model.state_dict()
    end = load_file(tmp_path / "parts" / LAST / "policy" / "model.safetensors")
    assert any(not torch.equal(end[key], start[key]) for key in start)


def test_a_run_that_forgets_its_scenes_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative twin: what is replayed depends on what was seen before the stop."""
    config = RUNS["replayed scenes"]
    rl(tmp_path / "straight", config)
    rl(tmp_path / "parts", replace(config, iterations=2))
    monkeypatch.setattr(SceneSource, "load_state", lambda source, arrays: None)
    rl(tmp_path / "parts", config, resume=True)
    assert records_of(tmp_path / "straight")[3:] != records_of(tmp_path / "parts")[3:]


@pytest.mark.parametrize("name", ["grpo", "awfm"])
def test_where_prefixes_are_kept_changes_nothing(name: str, tmp_path: Path) -> None:
    """In device memory, in three places, or nowhere."""
    runs, places = [], []
    for budgets in (24.0, 64.0), (1e-4, 1e-4), (0.0, 0.0):
        update = replace(UPDATES[name], prefix_device_gb=budgets[0], prefix_host_gb=budgets[1])
        records = rl(tmp_path / str(budgets[0]), replace(CONFIG, iterations=2, update=update))
        kinds = [f"cost/prefix_{kind}" for kind in ("device_hits", "host_hits", "recomputed")]
        places.append([records[-1][kind] > 0 for kind in kinds])
        runs.append([{k: v for k, v in record.items() if "/prefix_" not in k} for record in records])
    assert places == [[True, False, False], [True, True, True], [False, False, True]]
    assert runs[0] == runs[1] == runs[2]
    weights = {(tmp_path / place / "policy/model.safetensors").read_bytes() for place in ("24.0", "0.0001", "0.0")}
    assert len(weights) == 1


def test_a_critic_that_forgets_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative twin: the critic's weights and what it saw are part of the state."""
    config = RUNS["critic"]
    rl(tmp_path / "straight", config)
    rl(tmp_path / "parts", replace(config, iterations=2))
    monkeypatch.setattr(Critic, "load_state", lambda critic, arrays: None)
    rl(tmp_path / "parts", config, resume=True)
    first, second = (records_of(tmp_path / name)[3:] for name in ("straight", "parts"))
    assert [r["critic/explained_variance"] for r in first] != [r["critic/explained_variance"] for r in second]


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("name", ["linear", "adaptive"])
def test_the_prefix_follows_its_schedule_over_a_run(name: str, tmp_path: Path) -> None:
    records = rl(tmp_path, replace(RUNS[f"tree, {name}"], iterations=6))[1:]
    prefixes = [record["rollout/prefix"] for record in records]
    if name == "linear":
        assert prefixes == [6, 5, 4, 3, 2, 1]
        assert not any("rollout/parting_chunk" in record for record in records)
    else:
        assert prefixes[0] == 0, "nothing is known yet"
        assert len(set(prefixes)) > 2
        assert prefixes[1:] == [record["rollout/parting_chunk"] - 1 for record in records[:-1]]
    for record in records:
        assert (record["rollout/shared_share"] > 0) == (record["rollout/prefix"] > 0)
    flat, executed = (records[-1][f"cost/{name}"] for name in ("env_steps_flat", "env_steps"))
    assert flat > executed
    assert executed == records[-1]["cost/chunks"], "chunks of one env step, each counted once"


@pytest.mark.usefixtures("restless")
def test_an_adaptive_run_that_forgets_what_it_saw_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the exact resume: without the schedule's state the prefix starts from nothing again."""
    config = RUNS["tree, adaptive"]
    straight = rl(tmp_path / "straight", config)
    rl(tmp_path / "parts", replace(config, iterations=2))
    monkeypatch.setattr(prefix.PrefixSchedule, "load_state", lambda self, arrays: None)
    forgetful = rl(tmp_path / "parts", config, resume=True)
    assert [record["rollout/prefix"] for record in forgetful[1:3]] == [r["rollout/prefix"] for r in straight[1:3]]
    assert straight[3]["rollout/prefix"] > forgetful[3]["rollout/prefix"] == 0


def test_the_schedule_learns_from_dropped_groups_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(prefix.PrefixSchedule, "observe", lambda self, groups: seen.append(len(groups)))
    records = rl(tmp_path, replace(RUNS["tree, adaptive"], iterations=2))[1:]
    assert seen == [record["rollout/groups_kept"] + record["rollout/groups_dropped"] for record in records]
    assert any(record["rollout/groups_dropped"] for record in records)


@pytest.mark.parametrize("name", ["grpo", "awfm"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, update=UPDATES[name], iterations=2)
    for folder in ("first", "second"):
        rl(tmp_path / folder, config)
    assert_equal_runs(tmp_path / "first", tmp_path / "second")
    rl(tmp_path / "other", replace(config, seed=1))
    assert records_of(tmp_path / "other") != records_of(tmp_path / "first")


@pytest.mark.parametrize("updates", [0, 1, 3])
@pytest.mark.parametrize("name", ["grpo", "awfm"])
def test_an_interrupted_run_continues_to_the_same_numbers(
    name: str, updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, update=UPDATES[name])
    with monkeypatch.context() as patch:
        interrupt_after(patch, Learner, "update", updates)
        with pytest.raises(KeyboardInterrupt):
            rl(tmp_path / "parts", config)
    assert len(read_metrics(tmp_path / "parts" / "metrics.jsonl")) == updates + 1
    rl(tmp_path / "parts", config, resume=True)
    rl(tmp_path / "straight", config)
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_run_interrupted_while_it_saves_continues(
    calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, and between the record and the checkpoint of an iteration."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, Trainer, "save", calls)
        with pytest.raises(KeyboardInterrupt):
            rl(tmp_path / "parts")
    rl(tmp_path / "parts", resume=True)
    rl(tmp_path / "straight")
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")


def test_a_run_interrupted_while_it_validates_at_the_start_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, Trainer, "validate", 0)
        with pytest.raises(KeyboardInterrupt):
            rl(tmp_path / "parts")
    rl(tmp_path / "parts", resume=True)
    rl(tmp_path / "straight")
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    rl(tmp_path / "run")
    before = state_of(tmp_path / "run"), records_of(tmp_path / "run")
    rl(tmp_path / "run", resume=True)
    assert (state_of(tmp_path / "run"), records_of(tmp_path / "run")) == before


def test_a_lost_checkpoint_is_an_error_and_the_records_stay(tmp_path: Path) -> None:
    rl(tmp_path / "run", replace(CONFIG, iterations=1))
    (tmp_path / "run" / LAST / "state.json").unlink()
    (tmp_path / "run" / LAST).rename(tmp_path / "run" / "checkpoints" / "gone")
    before = records_of(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        rl(tmp_path / "run", resume=True)
    assert str(caught.value) == f"{tmp_path / 'run' / LAST / 'state.json'} is missing"
    assert records_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("state.json", b"[]", "state.json has format None; expected 'z1.training-state/3'"),
        ("state.json", b'{"format": "z1.training-state/3", "optimizer_groups": []}', "does not fit the policy"),
        ("optimizer.safetensors", b"\0" * 20, "cannot be read"),
        ("extra.safetensors", None, "cannot be read"),
        ("policy/model.safetensors", b"\0" * 100, "model.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, file: str, content: bytes | None, text: str) -> None:
    rl(tmp_path, replace(CONFIG, iterations=1))
    damaged = tmp_path / LAST / file
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        rl(tmp_path, resume=True)
    assert text in str(caught.value)


def test_a_checkpoint_without_its_counters_is_refused(tmp_path: Path) -> None:
    rl(tmp_path, replace(CONFIG, iterations=1))
    path = tmp_path / LAST / "state.json"
    state = json.loads(path.read_text())
    del state["totals"]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError) as caught:
        rl(tmp_path, resume=True)
    assert str(caught.value) == f"{path} is incomplete: 'totals'; use an older checkpoint"


def test_a_checkpoint_from_before_the_prefix_schedule_is_refused(tmp_path: Path) -> None:
    """It held the objective's tensors alone, under their bare names: nothing must be passed over in silence."""
    config = replace(CONFIG, update=UPDATES["awfm"], iterations=1)
    rl(tmp_path, config)
    path, state = tmp_path / LAST / "extra.safetensors", tmp_path / LAST / "state.json"
    kept = {name: t for name, t in load_file(path).items() if name.startswith("objective.")}
    assert kept
    save_file({name.removeprefix("objective."): t for name, t in kept.items()}, path)
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": "z1.training-state/1"}))
    with pytest.raises(CheckpointError) as caught:
        rl(tmp_path, replace(config, iterations=2), resume=True)
    assert str(tmp_path / LAST) in str(caught.value)


@pytest.mark.parametrize("success", [True, False])
def test_an_iteration_whose_groups_are_all_dropped_is_logged_without_update(tmp_path: Path, success: bool) -> None:
    config = replace(CONFIG, iterations=2, rollout=replace(CONFIG.rollout, max_env_steps=200))
    records = rl(tmp_path, config, pool=ToyPool(outcome=lambda scene, member: success))
    for record in records[1:]:
        assert record["rollout/success"] == float(success)
        assert record["rollout/groups_kept"] == 0
        assert record["rollout/groups_dropped"] == 8, "4 groups of 4 members cost 128 env steps"
        assert not any(key.startswith("update/") for key in record)
    assert records[-1]["cost/env_steps"] == 2 * 256
    assert records[-1]["cost/gradient_chunks"] == 0
    start, end = toy_policy().model.state_dict(), load_file(tmp_path / LAST / "policy" / "model.safetensors")
    assert all(torch.equal(end[key], start[key]) for key in start)


def test_groups_without_a_signal_move_nothing_when_the_filter_lets_them_pass(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=1, rollout=replace(CONFIG.rollout, filter_low=0.0, filter_high=1.0))
    (_, record) = rl(tmp_path, config, pool=ToyPool(outcome=lambda scene, member: False))
    assert (record["update/grad_norm"], record["update/optimizer_steps"]) == (0.0, 0)
    start, end = toy_policy().model.state_dict(), load_file(tmp_path / LAST / "policy" / "model.safetensors")
    assert all(torch.equal(end[key], start[key]) for key in start)


def test_lost_members_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    pool = ToyPool(outcome=by_luck, lost=lambda scene, member: member == 3 and scene.seed % 2 == 0)
    records = rl(tmp_path, replace(CONFIG, iterations=2), pool=pool)
    assert sum(record["rollout/invalid_members"] for record in records[1:]) > 0
    assert all(record["update/optimizer_steps"] > 0 for record in records[1:])
    for record in records[1:]:
        groups = record["rollout/groups_kept"] + record["rollout/groups_dropped"]
        assert record["rollout/episodes"] == 4 * groups - record["rollout/invalid_members"]


def test_the_budget_also_ends_the_refilling_within_an_iteration(tmp_path: Path) -> None:
    """All groups fail and are replaced, 4 of 4 members with 8 env steps at a time, until 300 env steps are spent."""
    wave = 4 * 4 * 8
    config = replace(CONFIG, env_step_budget=300, iterations=50)
    records = rl(tmp_path / "bounded", config, pool=ToyPool(outcome=lambda scene, member: False))
    assert records[-1]["cost/env_steps"] == 3 * wave, "the wave in which the budget ends is finished"
    free = rl(
        tmp_path / "free", replace(config, env_step_budget=0, iterations=1), pool=ToyPool(outcome=lambda s, m: False)
    )
    assert free[-1]["cost/env_steps"] == 16 * wave, "without a budget the iteration's own limit of 2000"


def test_the_env_step_budget_ends_the_run_with_a_validation(tmp_path: Path) -> None:
    one = rl(tmp_path / "one", replace(CONFIG, iterations=1))[-1]["cost/env_steps"]
    config = replace(CONFIG, env_step_budget=one + 1, iterations=50, validation=replace(CONFIG.validation, every=0))
    records = rl(tmp_path / "run", config)
    assert [record["iteration"] for record in records] == [0, 1]
    assert ["eval/success" in record for record in records] == [False, True]


def test_validation_may_be_due_by_env_steps(tmp_path: Path) -> None:
    """Whenever another 300 env steps are full, at the start and at the end; also across a stop and a resume."""
    config = replace(CONFIG, validation=ValidationConfig(every=0, every_env_steps=300, episodes=2))
    records = rl(tmp_path / "straight", config)
    steps = [record.get("cost/env_steps", 0) for record in records]
    due = [after // 300 > before // 300 for before, after in itertools.pairwise(steps)]
    assert set(due[:-1]) == {True, False}
    assert ["eval/success" in record for record in records] == [True, *due[:-1], True]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, Learner, "update", 2)
        with pytest.raises(KeyboardInterrupt):
            rl(tmp_path / "parts", config)
    rl(tmp_path / "parts", config, resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")


def test_the_time_budget_ends_the_run_with_a_validation(tmp_path: Path) -> None:
    config = replace(CONFIG, time_budget_s=1e-3, iterations=50, validation=replace(CONFIG.validation, every=0))
    records = rl(tmp_path, config)
    assert [record["iteration"] for record in records] == [0]
    assert "eval/success" in records[0]


def test_the_best_validated_policy_is_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Success falls after iteration 1, so its policy is kept, not the last one."""
    rates = iter([1, 3, 2])

    def outcome(scene: Any, member: int) -> bool:
        return scene.seed - 1_000_000_000 < current[0] if scene.split == "validation" else by_luck(scene, member)

    current = [0]
    original = Trainer.validate

    def validate(self: Trainer, iteration: int) -> dict[str, float]:
        current[0] = next(rates)
        return original(self, iteration)

    monkeypatch.setattr(Trainer, "validate", validate)
    config = replace(CONFIG, iterations=2, validation=ValidationConfig(every=1, episodes=4))
    records = rl(tmp_path, config, pool=ToyPool(outcome=outcome))
    assert [record["eval/success"] for record in records] == [0.25, 0.75, 0.5]
    best, last, result = (
        (tmp_path / folder / "model.safetensors").read_bytes()
        for folder in (f"{BEST}/policy", f"{LAST}/policy", "policy")
    )
    assert result == best != last
    assert json.loads((tmp_path / LAST / "state.json").read_text())["best_step"] == 1


@pytest.mark.parametrize("validated", [True, False])
def test_averaged_weights_are_validated_and_saved_and_change_nothing_else(
    validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    seen: list[dict[str, torch.Tensor]] = []
    update, evaluate = Trainer.update, Trainer._evaluate

    def keep(trainer: Trainer) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in trainer.learner.trained.by_name.items()}

    def spied_update(self: Trainer, *arguments: Any) -> Any:
        stats = update(self, *arguments)
        weights.append(keep(self))
        return stats

    def spied_evaluate(self: Trainer, iteration: int) -> Any:
        seen.append(keep(self))
        return evaluate(self, iteration)

    plain = replace(CONFIG, iterations=3, validation=ValidationConfig(every=int(validated), episodes=4))
    rl(tmp_path / "plain", plain)
    monkeypatch.setattr(Trainer, "update", spied_update)
    monkeypatch.setattr(Trainer, "_evaluate", spied_evaluate)
    rl(tmp_path / "run", replace(plain, update=replace(plain.update, ema_decay=0.6)))
    trained, same = (
        [{key: x for key, x in record.items() if not key.startswith("eval/")} for record in records_of(tmp_path / name)]
        for name in ("plain", "run")
    )
    assert trained == same
    last, result = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in (f"plain/{LAST}", "run"))
    assert all(torch.equal(last[name], tensor) for name, tensor in weights[-1].items()), "training has its own weights"
    average = {name: p.detach() for name, p in toy_policy().model.named_parameters() if name in weights[0]}
    expected = [average := {name: torch.lerp(a, now[name], 0.4) for name, a in average.items()} for now in weights]
    if validated:
        for shown, wanted in zip(seen[1:], expected, strict=True):
            for name, tensor in wanted.items():
                torch.testing.assert_close(shown[name], tensor)
    else:
        for name, tensor in expected[-1].items():
            torch.testing.assert_close(result[name], tensor)
        assert any(not torch.equal(result[name], tensor) for name, tensor in weights[-1].items())


def test_evaluation_scenes_and_training_scenes_are_disjoint(tmp_path: Path) -> None:
    pool = ToyPool(outcome=by_luck)
    rl(tmp_path, replace(CONFIG, iterations=2), pool=pool)
    splits = {scene.split for scene in pool.started}
    assert splits == {"train", "validation"}
    seeds = {name: {scene.seed for scene in pool.started if scene.split == name} for name in splits}
    assert seeds["validation"] == {1_000_000_000 + index for index in range(4)}
    assert max(seeds["train"]) < 1_000_000_000
    assert pool.alive == 0
    assert HORIZON * len(pool.started) <= pool.counters.env_steps


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema_decay": 0.9},
        {"ema_decay": 0.9, "precision": "bfloat16", "mode": "joint_frozen_vision"},
        {"ema_decay": 0.9, "mode": "lora", "lora_alpha": 4.0},
    ],
)
def test_sft_resumes_to_the_same_numbers(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SFT, **settings)
    straight = sft(tmp_path / "straight", config)
    assert [record["sft/step"] for record in straight] == [6, 10, 12, 18, 20, 24]
    with monkeypatch.context() as patch:
        interrupt_after(patch, SftTrainer, "_step", 14)
        with pytest.raises(KeyboardInterrupt):
            sft(tmp_path / "parts", config)
    assert not (tmp_path / "parts" / "policy").exists()
    sft(tmp_path / "parts", config, resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")
    last = tmp_path / "parts" / LAST / "policy" / "model.safetensors"
    averaged = (tmp_path / "parts" / "policy" / "model.safetensors").read_bytes() != last.read_bytes()
    assert averaged == (config.ema_decay > 0)


def test_sft_interrupted_before_its_first_checkpoint_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SFT, validate_every=12)
    with monkeypatch.context() as patch:
        interrupt_after(patch, SftTrainer, "_step", 11)
        with pytest.raises(KeyboardInterrupt):
            sft(tmp_path / "parts", config)
    assert [record["sft/step"] for record in records_of(tmp_path / "parts")] == [10]
    sft(tmp_path / "parts", config, resume=True)
    sft(tmp_path / "straight", config)
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")


def test_sft_without_its_checkpoint_is_refused(tmp_path: Path) -> None:
    sft(tmp_path)
    (tmp_path / LAST).rename(tmp_path / "gone")
    before = records_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"state\.json is missing$"):
        sft(tmp_path, resume=True)
    assert records_of(tmp_path) == before


def test_sft_that_diverges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        sft(tmp_path, replace(SFT, learning_rate=1e30, warmup_steps=0))
    text = str(caught.value)
    assert text.startswith("training diverged at step ")
    assert text.endswith("start a new run with a lower learning_rate (it is 1e+30)")


def test_rl_that_diverges_is_refused_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    config = replace(CONFIG, update=replace(CONFIG.update, learning_rate=1e30))
    with pytest.raises(ConfigError) as caught:
        rl(tmp_path, config)
    assert str(caught.value).startswith("the update of iteration 0 diverged: loss ")
    weights = load_file(tmp_path / LAST / "policy" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
