"""Recording demonstrations on a made-up simulator: which scenes are tried, what is stored, resuming, giving up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from z1.data import record
from z1.data.lerobot import LeRobotDataset
from z1.data.record import DemoConfig, DemoProgress, record_demonstrations
from z1.data.record_plan import TaskPlan
from z1.errors import ConfigError, DatasetError, UnknownNameError
from z1.seeding import Seeds
from z1.sims.pool import SimSpec
from z1.types import ChunkOutcome, Observations, Scene, SimInfo

TASKS = ("metaworld/window-open", "metaworld/handle-press")
HORIZON = 9


@dataclass(eq=False)
class ToyMember:
    scene: Scene
    steps: int = 0
    position: float = 0.0


class ToyPool:
    """A pool whose scene with index i is solved after 3 + i % 4 env steps, or never if i % 5 == 2.

    The position adds up the executed actions, so that noise shows in the states. The expert wants 1.5, which is beyond
    the bounds.
    """

    calls = 0
    """Env steps of all pools since the last reset of this number."""
    lose_at: frozenset[int] = frozenset()
    """Calls of step_chunk at which all members are lost."""
    interrupt_at = -1
    """Call of step_chunk that raises KeyboardInterrupt."""

    def __init__(self, spec: SimSpec, hosts: int = 1, *, timeout_s: float = 120.0) -> None:
        self._spec = spec
        self.info = SimInfo(
            simulator="metaworld",
            version="0",
            renderer="toy",
            python="3",
            tasks=("handle-press", "window-open"),
            cameras=("left", "right"),
            all_cameras=("left", "right"),
            image_size=spec.image_size,
            action_names=("a", "b"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            state_names=("position", "step", "seed"),
            control_hz=10.0,
            experts=("handle-press", "window-open"),
        )

    def __enter__(self) -> ToyPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, scenes: Sequence[Scene], members: int = 1) -> list[list[ToyMember]]:
        assert members == 1
        return [[ToyMember(scene)] for scene in scenes]

    def observe(self, members: Sequence[ToyMember]) -> Observations:
        size = self._spec.image_size
        images = np.zeros((len(members), 2, size, size, 3), dtype=np.uint8)
        for row, member in enumerate(members):
            images[row, 0] = member.steps
            images[row, 1] = member.scene.seed
        state = np.array([[m.position, m.steps, m.scene.seed] for m in members], dtype=np.float32)
        names = tuple(f"do {member.scene.task}" for member in members)
        return Observations(images=images, state=state, instructions=names)

    def expert_actions(self, members: Sequence[ToyMember]) -> np.ndarray:
        return np.array([[1.5, -0.5 * m.position] for m in members], dtype=np.float32)

    def step_chunk(self, members: Sequence[ToyMember], actions: np.ndarray) -> ChunkOutcome:
        cls = type(self)
        cls.calls += 1
        if cls.calls == cls.interrupt_at:
            raise KeyboardInterrupt
        assert actions.shape == (len(members), 1, 2)
        assert np.abs(actions).max() <= 1
        for member, action in zip(members, actions[:, 0], strict=True):
            member.steps += 1
            member.position += float(action[0])
        index = np.array([member.scene.seed for member in members])
        steps = np.array([member.steps for member in members])
        invalid = np.full(len(members), cls.calls in cls.lose_at)
        success = (index % 5 != 2) & (steps == 3 + index % 4) & ~invalid
        return ChunkOutcome(
            executed=np.ones(len(members), dtype=np.int64),
            success=success,
            truncated=(steps == HORIZON) & ~success & ~invalid,
            invalid=invalid,
            observations=self.observe(members),
        )

    def release(self, members: Sequence[ToyMember]) -> None:
        pass


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> type[ToyPool]:
    monkeypatch.setattr(record, "SimPool", ToyPool)
    monkeypatch.setattr(ToyPool, "calls", 0)
    return ToyPool


def config(path: Path, **settings: Any) -> DemoConfig:
    return DemoConfig(**{"task": TASKS, "out": str(path / "demos"), "episodes": 4, "image_size": 16, **settings})


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "demos/meta/z1_manifest.json").read_text())


def test_first_solved_scenes_are_recorded(tmp_path: Path) -> None:
    seen: list[DemoProgress] = []
    summary = record_demonstrations(config(tmp_path), seen.append)
    dataset = LeRobotDataset.open(summary.path)
    # Scenes 0, 1, 3, 4 of each task succeed after 3, 4, 6, 3 steps; scene 2 never does.
    assert [episode.length for episode in dataset.episodes] == [3, 4, 6, 3] * 2
    assert dataset.tasks == [f"do {task}" for task in TASKS]
    assert (summary.episodes, summary.frames, summary.resumed) == (8, 32, 0)
    assert summary.failures == dict.fromkeys(TASKS, 1)
    assert dataset.fps == 10
    assert dataset.cameras == ("left", "right")
    assert seen[-1] == DemoProgress(task=seen[-1].task, episodes=8, total=8, failures=2, frames=32)
    assert [progress.episodes + progress.failures for progress in seen] == list(range(1, 11))
    wanted = {"attempts": 5, "episode_seeds": [0, 1, 3, 4], "failures": [{"seed": 2, "reason": "horizon"}]}
    for entry in manifest(tmp_path)["tasks"]:
        assert {name: entry[name] for name in wanted} == wanted
    assert manifest(tmp_path)["noise_std"] == 0.3
    assert manifest(tmp_path)["split"] == "train"


def test_rows_hold_what_was_seen_before_each_action(tmp_path: Path) -> None:
    dataset = LeRobotDataset.open(record_demonstrations(config(tmp_path)).path)
    np.testing.assert_array_equal(dataset.state[:, 1], np.concatenate([np.arange(e.length) for e in dataset.episodes]))
    np.testing.assert_array_equal(dataset.images("left")[:, 0, 0, 0], dataset.state[:, 1])
    np.testing.assert_array_equal(dataset.images("right")[:, 5, 5, 2], dataset.state[:, 2])


def test_labels_are_the_clipped_expert_and_execution_is_noisy(tmp_path: Path) -> None:
    dataset = LeRobotDataset.open(record_demonstrations(config(tmp_path, seed=5)).path)
    # Expert (1.5, -position / 2), clipped to [-1, 1]; noise is in what was executed, so in the positions.
    expected = np.stack([np.ones(32), np.clip(-0.5 * dataset.state[:, 0], -1, 1)], axis=1)
    np.testing.assert_allclose(dataset.action, expected, rtol=1e-6)
    noise = Seeds(5).rng("demos", TASKS[0], 3).standard_normal((6, 2), dtype=np.float32)
    executed = np.clip(np.float32(1) + np.float32(0.3) * noise[:, 0], -1, 1)
    episode = dataset.episodes[2]
    positions = dataset.state[episode.from_index : episode.from_index + 6, 0]
    np.testing.assert_allclose(positions, np.concatenate([[0], np.cumsum(executed)[:-1]]), rtol=1e-6)


def test_no_noise_executes_the_expert(tmp_path: Path) -> None:
    dataset = LeRobotDataset.open(record_demonstrations(config(tmp_path, noise_std=0.0)).path)
    np.testing.assert_array_equal(dataset.state[:, 0], dataset.state[:, 1])


@pytest.mark.parametrize("settings", [{"hosts": 1, "in_flight": 1}, {"hosts": 3, "in_flight": 5}])
def test_hosts_and_episodes_in_flight_change_nothing(tmp_path: Path, settings: dict[str, int]) -> None:
    reference = LeRobotDataset.open(record_demonstrations(config(tmp_path / "a")).path)
    other = LeRobotDataset.open(record_demonstrations(config(tmp_path / "b", **settings)).path)
    np.testing.assert_array_equal(other.state, reference.state)
    np.testing.assert_array_equal(other.action, reference.action)
    np.testing.assert_array_equal(other.images("left"), reference.images("left"))
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b")


def test_another_seed_gives_another_recording(tmp_path: Path) -> None:
    a, b = (LeRobotDataset.open(record_demonstrations(config(tmp_path / str(s), seed=s)).path) for s in (1, 2))
    assert np.abs(a.state - b.state).max() > 0.01


def test_lost_episodes_are_tried_again(tmp_path: Path, toy: type[ToyPool], monkeypatch: pytest.MonkeyPatch) -> None:
    reference = LeRobotDataset.open(record_demonstrations(config(tmp_path / "a")).path)
    monkeypatch.setattr(toy, "calls", 0)
    monkeypatch.setattr(toy, "lose_at", frozenset({2, 4}))
    other = LeRobotDataset.open(record_demonstrations(config(tmp_path / "b")).path)
    np.testing.assert_array_equal(other.state, reference.state)
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b")


def test_episodes_lost_again_and_again_count_as_failures(
    tmp_path: Path, toy: type[ToyPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "lose_at", frozenset({1, 2, 3}))
    record_demonstrations(config(tmp_path, episodes=1))
    entry = manifest(tmp_path)["tasks"][0]
    assert entry["failures"] == [{"seed": 0, "reason": "lost"}]
    assert entry["episode_seeds"] == [1]


def test_interrupted_recording_is_finished(tmp_path: Path, toy: type[ToyPool], monkeypatch: pytest.MonkeyPatch) -> None:
    reference = LeRobotDataset.open(record_demonstrations(config(tmp_path / "a")).path)
    whole = toy.calls
    monkeypatch.setattr(toy, "calls", 0)
    monkeypatch.setattr(toy, "interrupt_at", whole - 1)
    with pytest.raises(KeyboardInterrupt):
        record_demonstrations(config(tmp_path / "b"))
    assert not (tmp_path / "b/demos").exists()
    with pytest.raises(DatasetError, match=r"unfinished recording with other settings \(noise_std was 0\.3, is 0\.2\)"):
        record_demonstrations(config(tmp_path / "b", noise_std=0.2))
    summary = record_demonstrations(config(tmp_path / "b", in_flight=3))
    assert summary.resumed >= 4
    assert summary.episodes == 8
    other = LeRobotDataset.open(summary.path)
    np.testing.assert_array_equal(other.state, reference.state)
    np.testing.assert_array_equal(other.images("right"), reference.images("right"))
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b")
    assert [entry.name for entry in (tmp_path / "b").iterdir()] == ["demos"]


def test_existing_dataset_is_refused_before_the_simulator_starts(tmp_path: Path, toy: type[ToyPool]) -> None:
    record_demonstrations(config(tmp_path))
    before = toy.calls
    with pytest.raises(DatasetError) as caught:
        record_demonstrations(config(tmp_path, seed=1))
    assert str(caught.value) == (
        f"{tmp_path}/demos exists already; choose another path, or overwrite it explicitly (overwrite)"
    )
    assert toy.calls == before
    assert record_demonstrations(config(tmp_path, seed=1, overwrite=True)).episodes == 8
    assert manifest(tmp_path)["seed"] == 1


def test_hopeless_tasks_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def skip_to_the_horizon(self: ToyPool, members: Sequence[ToyMember]) -> np.ndarray:
        for member in members:
            member.steps = HORIZON - 1
        return np.zeros((len(members), 2), dtype=np.float32)

    monkeypatch.setattr(ToyPool, "expert_actions", skip_to_the_horizon)
    with pytest.raises(DatasetError) as caught:
        record_demonstrations(config(tmp_path, in_flight=1, hosts=1, horizon=9))
    assert str(caught.value) == (
        "metaworld/window-open: the scripted expert solved 0 of 11 scenes with noise_std 0.3 and horizon 9; "
        "choose less noise or a longer horizon (0: the simulator's own)"
    )


def test_plan_tries_the_shortest_range_in_any_order() -> None:
    # Every order in which up to three running scenes can end gives the same scenes. Scenes 1 and 3 fail.
    results = set()
    for order in itertools.product(range(3), repeat=8):
        plan = TaskPlan(number=0, task="t", episodes=3)
        choices = iter(order)
        while True:
            while plan.next_scene() is not None:
                pass
            if not plan.running:
                break
            index = sorted(plan.running)[next(choices) % len(plan.running)]
            plan.running.discard(index)
            if index in (1, 3):
                plan.failed[index] = "horizon"
            else:
                plan.solved.add(index)
        results.add((tuple(sorted(plan.solved)), tuple(sorted(plan.failed))))
    assert results == {((0, 2, 4), (1, 3))}


def test_plan_keys() -> None:
    plan = TaskPlan(number=7, task="t", episodes=1)
    assert plan.key(12) == "007-000012"
    assert plan.index_of("007-000012") == 12
    assert plan.index_of("008-000012") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": ()}, "task is (); it must be at least one task id, for example metaworld/window-open"),
        ({"task": TASKS[:1] * 2}, f"task is {TASKS[:1] * 2}; it must be different task ids"),
        ({"episodes": 0}, "episodes is 0; it must be at least 1"),
        ({"noise_std": -0.1}, "noise_std is -0.1; it must be from 0 up to 10 (0.3 is usual)"),
        ({"hosts": 0}, "hosts is 0; it must be at least 1"),
        ({"in_flight": -1}, "in_flight is -1; it must be 0 or a number of episodes"),
        ({"image_size": 4}, "image_size is 4; it must be from 8 to 1024 pixels"),
        ({"quality": "best"}, "quality is 'best'; it must be 'fast', 'default' or empty"),
        ({"horizon": -1}, "horizon is -1; it must be 0 or a number of env steps"),
        ({"timeout_s": 0}, "timeout_s is 0; it must be a positive number of seconds"),
        ({"out": ""}, "out is ''; it must be a folder to create"),
        ({"cameras": ("corner2", "corner2")}, "cameras is ('corner2', 'corner2'); it must be different cameras"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **settings)
    assert str(caught.value) == message


def test_unknown_task(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="window-opem"):
        config(tmp_path, task=("metaworld/window-opem",))


def test_fractional_rates_are_refused(tmp_path: Path) -> None:
    info = replace(ToyPool(SimSpec(simulator="metaworld")).info, control_hz=12.5)
    with pytest.raises(DatasetError, match=r"runs at 12\.5 Hz, a LeRobotDataset needs a whole number"):
        record.open_writer(config(tmp_path), info)
