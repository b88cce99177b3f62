"""The RoboCasa adapter on the real simulator: contract, exactness, agreement with robosuite, what a group costs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from z1.errors import SimulatorError
from z1.sims.check import check_sim
from z1.sims.pool import SimPool, SimSpec
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_layout import ACTION_NAMES, CAMERAS, STATE_NAMES, no_op
from z1.sims.robocasa_tasks import TASKS
from z1.sims.snapshot import decode_snapshot, encode_snapshot
from z1.train.selection import NEAR_M
from z1.types import Scene

pytestmark = [pytest.mark.robocasa, pytest.mark.timeout(1200)]

TASK = "robocasa/CloseDrawer"


@pytest.fixture(scope="module")
def pool() -> Iterator[SimPool]:
    """One host."""
    with SimPool(SimSpec(simulator="robocasa", image_size=64), 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def quick_pool() -> Iterator[SimPool]:
    """One host that renders little."""
    spec = SimSpec(simulator="robocasa", cameras=CAMERAS[-1:], image_size=8, quality="fast")
    with SimPool(spec, 1) as pool:
        yield pool


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "robocasa_snapshots.py"
    spec = importlib.util.spec_from_file_location("robocasa_snapshots", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_robocasa_keeps_the_contract() -> None:
    rows = check_sim(SimSpec(simulator="robocasa", image_size=64), TASK)
    assert [(row.name, row.detail) for row in rows if not row.passed] == []


def test_adapter_and_robosuite_agree_bit_by_bit(tmp_path: Path, run_program: Callable[..., str]) -> None:
    for what in ("directly", "adapter"):
        printed = run_program("reference_program.py", what, tmp_path / "seen.npz")
    report = json.loads(printed.splitlines()[-1])
    kitchen = report.pop("kitchen")
    assert tuple(kitchen) in ((1, 1), (2, 2), (4, 4), (6, 9), (7, 10))
    assert report == {
        "same_physics": True,
        "same_success": True,
        "same_state": True,
        "different_pixels": [0, 0, 0],
        "same_instruction": True,
    }


def test_collision_checks_that_are_left_out_change_nothing(run_program: Callable[..., str]) -> None:
    rows = [
        json.loads(line) for line in run_program("repeats_program.py", 1, "CloseDrawer", "TurnOnStove").splitlines()
    ]
    assert [row["same"] for row in rows] == [True, True]
    assert min(row["asleep"] for row in rows) >= 5


def test_snapshots_are_exact_and_not_without_their_parts(interpreter: str) -> None:
    row = benchmark().check_task(interpreter, "TurnOnMicrowave")
    assert row["flipped"]
    assert row["exact"], row
    for part in ("solver warm start", "arm controller's origin", "gripper's current action"):
        assert row["left_out"][part]["first_different_step"] >= 1, part
    assert not row["left_out"]["fixtures' latched buttons"]["same_at_the_end"]


def test_a_group_of_eight_costs_one_scene_and_is_told_what_the_scene_is_about(pool: SimPool) -> None:
    before = pool.counters.copy()
    scene = Scene.of_split(TASK, "train", 0)
    (members,) = pool.start([scene], 8)
    assert pool.counters.scene_builds - before.scene_builds == 1
    view = pool.observe(members)
    assert set(view.instructions) <= {"close the left drawer", "close the right drawer"}
    assert len(set(view.instructions)) == 1
    (manifest,) = pool.describe(members[:1])
    assert manifest["ep_meta"]["lang"] == view.instructions[0]
    assert (manifest["ep_meta"]["layout_id"], manifest["ep_meta"]["style_id"]) not in ((1, 1), (2, 2), (4, 4))
    actions = np.tile(no_op(), (8, 4, 1))
    actions[:, :, 0] = np.linspace(-1, 1, 8)[:, None]
    outcome = pool.step_chunk(members, actions)
    assert pool.counters.scene_builds - before.scene_builds == 1
    assert outcome.executed.tolist() == [4] * 8
    assert outcome.observations.instructions == view.instructions
    assert len({state.tobytes() for state in outcome.observations.state}) == 8
    forks = pool.fork(members[:1], [2])[0]
    assert pool.observe(forks).instructions == view.instructions[:2]
    pool.release([*members, *forks])


def test_what_the_simulator_says_about_itself(pool: SimPool) -> None:
    info = pool.info
    assert (info.action_names, info.state_names, info.cameras) == (ACTION_NAMES, STATE_NAMES, CAMERAS)
    assert info.control_hz == 20
    assert info.quality == "default"
    assert info.model_per_scene
    assert pool.horizon_of(TASK) == 500
    assert pool.horizon_of("robocasa/OpenDoubleDoor") == 1000
    assert "(7,10)" in info.protocol
    assert info.stand_ins == "" or "not comparable with any published score" in info.stand_ins


def test_a_snapshot_of_another_kitchen_is_refused(pool: SimPool) -> None:
    scene = Scene.of_split(TASK, "train", 0)
    (member,) = pool.start([scene])[0]
    content = decode_snapshot(pool.snapshot(member))
    attributes = {**content.state.attributes, "fingerprint": "0" * 32}
    foreign = dataclasses.replace(content, state=dataclasses.replace(content.state, attributes=attributes))
    with pytest.raises(SimulatorError, match=r"was taken in another kitchen \(fingerprint 0{32}, here "):
        pool.restore(scene, encode_snapshot(foreign))
    pool.release([member])


@pytest.mark.parametrize("task", sorted(set(TASKS) - set(EXPERTS)))
def test_tasks_without_an_expert_also_tell_how_far_the_gripper_is(quick_pool: SimPool, task: str) -> None:
    (member,) = quick_pool.start([Scene.of_split(f"robocasa/{task}", "train", 0)])[0]
    outcome = quick_pool.step_chunk([member], no_op()[None, None])
    assert NEAR_M < outcome.nearest[0] < 1.0
    quick_pool.release([member])


def test_members_of_a_host_that_dies_are_put_back(pool: SimPool) -> None:
    """In a new process the scene is built again and the actions executed again; what follows is as in the old one."""
    scene = Scene.of_split(TASK, "train", 3)
    actions = np.zeros((2, 2, 4, len(ACTION_NAMES)), np.float32)
    actions[..., :6] = np.random.default_rng(0).uniform(-1, 1, (2, 2, 4, 6))
    outcomes = []
    for dies in (False, True):
        members = pool.start([scene], 2)[0]
        pool.step_chunk(members, actions[0])
        if dies:
            os.kill(pool.host_pids[0], signal.SIGKILL)
        outcomes.append(pool.step_chunk(members, actions[1]))
        pool.release(members)
    usual, recovered = outcomes
    assert not recovered.invalid.any()
    np.testing.assert_array_equal(recovered.observations.images, usual.observations.images)
    np.testing.assert_array_equal(recovered.observations.state, usual.observations.state)
    assert pool.counters.recovered_members == 2


def test_an_expert_is_not_pretended(pool: SimPool) -> None:
    assert "PnPCounterToCab" not in pool.info.experts
    (member,) = pool.start([Scene.of_split("robocasa/PnPCounterToCab", "train", 0)])[0]
    with pytest.raises(SimulatorError, match="RoboCasa has no scripted expert for PnPCounterToCab; there are for "):
        pool.expert_actions([member])
    pool.release([member])


@pytest.mark.parametrize("task", sorted(EXPERTS))
def test_the_expert_solves_a_scene_and_repeats_itself(quick_pool: SimPool, task: str) -> None:
    pool = quick_pool
    assert task in pool.info.experts
    scene = Scene.of_split(f"robocasa/{task}", "train", 0)
    actions = []
    for _ in range(2):
        (member,) = pool.start([scene])[0]
        played, nearest, done = [], np.inf, False
        while not done:
            played.append(pool.expert_actions([member]))
            outcome = pool.step_chunk([member], played[-1][:, None])
            nearest = min(nearest, float(outcome.nearest[0]))
            done = bool(outcome.done[0])
        assert outcome.success[0]
        assert nearest < NEAR_M  # what counts as having reached the task's part
        pool.release([member])
        actions.append(np.stack(played))
    np.testing.assert_array_equal(*actions)
