"""MetaWorld's env steps without detours: the same numbers, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from z1.sims import metaworld_detours
from z1.sims.metaworld_detours import is_scipys, quaternion_of, without_detours


def metaworld_class(task: str) -> Any:
    """MetaWorld's own environment class of a task."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return ALL_V3_ENVIRONMENTS[f"{task}-v3"]


def episode(cls: Any, expert: Any, env_steps: int) -> list[Any]:
    """Observation, reward, info, physics and what the pads push on, of every env step under a scripted expert."""
    env = cls()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    env.seed(3)
    observation, _ = env.reset()
    seen: list[Any] = []
    for _ in range(env_steps):
        action = np.clip(expert.get_action(observation.copy()), -1, 1).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        pushed = [bool(env.touching_object(number)) for number in range(env.model.ngeom)]
        physics = (env.data.qpos.tobytes(), env.data.qvel.tobytes(), env.data.efc_force.tobytes())
        seen.append((observation.tobytes(), float(reward), repr(info), physics, any(pushed), pushed))
    env.close()
    return seen


@pytest.mark.filterwarnings("ignore")  # experts announce that their actions will be clipped
@pytest.mark.parametrize("task", ["pick-place", "stick-pull"])
def test_an_episode_is_the_same_to_the_bit(task: str) -> None:
    """With one object and with two; the pads hold something in the end."""
    from metaworld.policies import ENV_POLICY_MAP

    cls = metaworld_class(task)
    ours, theirs = (episode(c, ENV_POLICY_MAP[f"{task}-v3"](), 60) for c in (without_detours(cls), cls))
    assert ours == theirs
    assert {row[4] for row in ours} == {True, False}


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
    cls = metaworld_class("pick-place")
    assert without_detours(cls)._get_quat_objects is not cls._get_quat_objects
    is_scipys.cache_clear()
    monkeypatch.setattr(metaworld_detours, "quaternion_of", lambda matrix: -quaternion_of(matrix))
    assert without_detours(cls)._get_quat_objects is cls._get_quat_objects
    is_scipys.cache_clear()
