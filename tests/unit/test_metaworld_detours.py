"""MetaWorld's env steps without detours: the same numbers, to the bit, in tasks of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from z1.sims import metaworld, metaworld_detours
from z1.sims.adapter import AdapterSettings, make_adapter
from z1.sims.metaworld import MetaWorldTask
from z1.sims.metaworld_detours import is_scipys, quaternion_of, without_detours
from z1.types import Scene

SETTINGS = AdapterSettings(simulator="metaworld", cameras=("corner2",), image_size=16, horizon=0, quality="")


@contextmanager
def task_sim(task: str, prepare: Any, patch: pytest.MonkeyPatch) -> Iterator[MetaWorldTask]:
    """A task of the adapter, whose environment class is what ``prepare`` makes of MetaWorld's."""
    with patch.context() as changed:
        changed.setattr(metaworld, "without_detours", prepare)
        adapter = make_adapter(SETTINGS)
        try:
            sim: Any = adapter.task_sim(task)
            sim.reset(Scene.of_split(f"metaworld/{task}", "train", 0).seed)
            yield sim
        finally:
            adapter.close()


def episode(sim: MetaWorldTask, env_steps: int) -> list[Any]:
    """Success, whether the pads push, observation and physics of every env step, and the last attributes."""
    seen: list[Any] = []
    for _ in range(env_steps):
        success = sim.step(sim.expert_action())
        pushed = any(bool(sim._env.touching_object(number)) for number in range(sim._model.ngeom))
        seen.append((success, pushed, sim.observation.tobytes(), sim.capture().physics.tobytes()))
    attributes = sim.capture().attributes
    return [*seen, {n: v.tobytes() if isinstance(v, np.ndarray) else repr(v) for n, v in attributes.items()}]


@pytest.mark.parametrize("task", ["pick-place", "stick-pull", "door-open", "coffee-push"])
def test_an_episode_is_the_same_to_the_bit(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with task_sim(task, without_detours, monkeypatch) as quick:
        ours = episode(quick, 70)
        assert isinstance(quick._env, metaworld_detours._Quick)
    with task_sim(task, lambda cls: cls, monkeypatch) as usual:
        assert not isinstance(usual._env, metaworld_detours._Quick)
        assert ours == episode(usual, 70)
    if task == "pick-place":
        assert {pushed for _, pushed, *_ in ours[:-1]} == {True, False}


def test_quaternions_are_scipys_in_every_case() -> None:
    """Each of the four components is the largest one in some."""
    largest = set()
    for quaternion in np.random.default_rng(1).standard_normal((200, 4)):
        matrix = Rotation.from_quat(quaternion).as_matrix()
        found = quaternion_of(matrix)
        assert found.tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()
        largest.add(int(np.abs(found).argmax()))
    assert largest == {0, 1, 2, 3}
    np.testing.assert_array_equal(quaternion_of(np.eye(3)), [0, 0, 0, 1])


def test_another_scipy_keeps_its_own_quaternions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bits would differ nothing is replaced."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    cls = ALL_V3_ENVIRONMENTS["pick-place-v3"]
    assert without_detours(cls)._get_quat_objects is not cls._get_quat_objects
    is_scipys.cache_clear()
    monkeypatch.setattr(metaworld_detours, "quaternion_of", lambda matrix: -quaternion_of(matrix))
    assert without_detours(cls)._get_quat_objects is cls._get_quat_objects
    is_scipys.cache_clear()
