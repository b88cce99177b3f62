"""SimPool: shapes and order of rows, ends of episodes, forks, snapshots, frames, experts, misuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sims_helpers import SPEC, random_chunks, scene

from z1.errors import ConfigError, SimulatorError, UnknownNameError
from z1.sims.pool import Member, SimPool, SimSpec
from z1.sims.suites import all_tasks, name_of
from z1.types import ChunkOutcome, Scene


def outcome_bytes(outcome: ChunkOutcome) -> list[bytes]:
    """Everything in an outcome, to be compared bit by bit."""
    observations = outcome.observations
    arrays = [outcome.executed, outcome.success, outcome.truncated, outcome.invalid]
    return [array.tobytes() for array in (*arrays, observations.images, observations.state)]


def test_the_simulator_describes_itself(pool: SimPool) -> None:
    info = pool.info
    assert info.simulator == "metaworld"
    assert info.version.startswith("3.1.1 (mujoco 3.3")
    assert info.renderer.split(":")[0] in {"egl", "osmesa"}
    assert info.cameras == ("corner2", "gripperPOV")
    assert (info.action_dim, info.state_dim, info.image_size, info.control_hz) == (4, 4, 64, 80.0)
    assert {f"metaworld/{task}" for task in info.tasks} == set(all_tasks("metaworld"))
    assert pool.horizon_of("metaworld/reach") == 500


def test_one_build_and_one_rendering_serve_all_members_of_a_scene(pool: SimPool) -> None:
    before = pool.counters.copy()
    groups = pool.start([scene("reach"), scene("push")], 3)
    members = [member for group in groups for member in group]
    observations = pool.observe(members)
    after = pool.counters
    assert after.scene_builds - before.scene_builds == 2
    assert after.renders - before.renders == 4
    assert observations.images.shape == (6, 2, 64, 64, 3)
    assert observations.images.dtype == np.uint8
    assert observations.state.dtype == np.float32
    assert observations.instructions == ("move the hand to the goal",) * 3 + ("push the block to the goal",) * 3
    np.testing.assert_array_equal(observations.images[:3], observations.images[[0, 0, 0]])
    assert not np.array_equal(observations.images[0], observations.images[3])
    pool.release(members)


def test_rows_follow_the_caller(two_hosts: SimPool) -> None:
    scenes = [scene("push"), scene("reach"), scene("push", 1), scene("door-open")]
    members = [group[0] for group in two_hosts.start(scenes)]
    twins = [group[0] for group in two_hosts.start(scenes)]
    assert {two_hosts.host_of(member) for member in members} == {0, 1}
    (actions,) = random_chunks(0, 4, 1)
    order = np.array([2, 0, 3, 1])
    straight = two_hosts.step_chunk(members, actions)
    mixed = two_hosts.step_chunk([twins[i] for i in order], actions[order])
    np.testing.assert_array_equal(straight.observations.images[order], mixed.observations.images)
    np.testing.assert_array_equal(straight.observations.state[order], mixed.observations.state)
    seen = two_hosts.observe([twins[i] for i in order])
    np.testing.assert_array_equal(seen.images, mixed.observations.images)
    np.testing.assert_array_equal(seen.state, mixed.observations.state)
    assert seen.instructions == tuple(straight.observations.instructions[i] for i in order)
    two_hosts.release(members + twins)


def test_one_two_and_four_hosts_give_identical_results() -> None:
    scenes = [scene("reach"), scene("push"), scene("reach", 1), scene("drawer-open"), scene("push", 1)]
    chunks = random_chunks(1, 10, 3)
    results = []
    for hosts in (1, 2, 4):
        with SimPool(SPEC, hosts) as pool:
            members = [member for group in pool.start(scenes, 2) for member in group]
            assert len({pool.host_of(member) for member in members}) == hosts
            outcomes = [outcome_bytes(pool.step_chunk(members, chunk)) for chunk in chunks]
            experts = pool.expert_actions(members).tobytes()
            snapshots = [pool.snapshot(member) for member in members]
        results.append((outcomes, experts, snapshots))
    assert results[0] == results[1]
    assert results[0] == results[2]


def test_results_do_not_depend_on_the_company(pool: SimPool) -> None:
    together = pool.start([scene("push")], 3)[0]
    alone = pool.start([scene("push")])[0][0]
    chunks = random_chunks(2, 3, 3)
    for chunk in chunks:
        shared = pool.step_chunk(together, chunk)
        single = pool.step_chunk([alone], chunk[1:2])
        np.testing.assert_array_equal(shared.observations.images[1:2], single.observations.images)
    assert pool.snapshot(together[1]) == pool.snapshot(alone)
    assert pool.snapshot(together[0]) != pool.snapshot(alone)
    pool.release([*together, alone])


def test_scenes_do_not_depend_on_what_ran_before(pool: SimPool) -> None:
    names = ("door-lock", "basketball", "bin-picking", "stick-pull")
    for name in names:
        first = pool.start([scene(name, 3)])[0][0]
        expected = (pool.snapshot(first), pool.observe([first]).images.tobytes())
        other = pool.start([scene(name, 4)])[0][0]
        pool.step_chunk([other], np.ones((1, 30, 4), np.float32))
        again = pool.start([scene(name, 3)])[0][0]
        assert (pool.snapshot(again), pool.observe([again]).images.tobytes()) == expected
        assert pool.snapshot(other) != expected[0]
        pool.release([first, other, again])


def test_the_first_success_ends_the_episode_inside_a_chunk(pool: SimPool) -> None:
    """handle-press is the task whose success never lasts: seen only at the end of a chunk, it would be missed."""
    member = pool.start([scene("handle-press")])[0][0]
    steps = 0
    while True:
        chunk = np.repeat(pool.expert_actions([member])[:, None], 4, axis=1)
        outcome = pool.step_chunk([member], chunk)
        steps += int(outcome.executed[0])
        if outcome.done[0]:
            break
    assert outcome.success[0]
    assert not outcome.truncated[0]
    assert not outcome.invalid[0]
    assert 20 < steps < 80
    assert not outcome.observations.images.any()
    assert not outcome.observations.state.any()
    with pytest.raises(
        SimulatorError, match=rf"the episode of member {member.id} \(metaworld/handle-press\) has ended"
    ):
        pool.step_chunk([member], chunk)
    assert pool.frames([member], "corner2", 64).std() > 2
    pool.release([member])


def test_the_horizon_ends_the_episode_inside_a_chunk() -> None:
    with SimPool(dataclasses.replace(SPEC, horizon=12), 1) as pool:
        ends, goes_on = (group[0] for group in pool.start([scene("push"), scene("push", 1)]))
        before = pool.counters.copy()
        chunks = np.zeros((3, 1, 5, 4), np.float32)
        executed = [pool.step_chunk([ends], chunk) for chunk in chunks]
        assert [int(outcome.executed[0]) for outcome in executed] == [5, 5, 2]
        assert [bool(outcome.truncated[0]) for outcome in executed] == [False, False, True]
        assert not executed[-1].success[0]
        assert pool.counters.env_steps - before.env_steps == 12
        assert pool.counters.renders - before.renders == 4  # two surviving chunks, two cameras
        assert not pool.step_chunk([goes_on], chunks[0]).done[0]


def test_forks_share_the_past_and_nothing_is_simulated(pool: SimPool) -> None:
    member = pool.start([scene("push")])[0][0]
    chunks = random_chunks(3, 3, 2)
    pool.step_chunk([member], chunks[0, :1])
    before = pool.counters.copy()
    (copies,) = pool.fork([member], [3])
    seen = pool.observe([member, *copies])
    assert pool.counters.renders == before.renders
    assert pool.counters.env_steps == before.env_steps
    np.testing.assert_array_equal(seen.images, seen.images[[0, 0, 0, 0]])
    snapshot = pool.snapshot(member)
    assert [pool.snapshot(copy) for copy in copies] == [snapshot] * 3
    pool.step_chunk(copies, chunks[1])
    assert pool.snapshot(member) == snapshot
    assert len({pool.snapshot(copy) for copy in copies}) == 3
    pool.step_chunk([member], chunks[1, 1:2])
    assert pool.snapshot(member) == pool.snapshot(copies[1])
    assert len({member, *copies}) == 4
    pool.release([member, *copies])


def test_a_restored_member_goes_on_counting_env_steps() -> None:
    with SimPool(dataclasses.replace(SPEC, horizon=8), 2) as pool:
        member = pool.start([scene("push")])[0][0]
        pool.step_chunk([member], np.zeros((1, 5, 4), np.float32))
        restored = pool.restore(member.scene, pool.snapshot(member), host=1)
        outcome = pool.step_chunk([restored], np.zeros((1, 5, 4), np.float32))
        assert (int(outcome.executed[0]), bool(outcome.truncated[0])) == (3, True)
        ended = pool.restore(member.scene, pool.snapshot(restored))
        with pytest.raises(SimulatorError, match="has ended"):
            pool.step_chunk([ended], np.zeros((1, 5, 4), np.float32))


def test_snapshots_of_other_scenes_and_versions_are_refused(pool: SimPool) -> None:
    member = pool.start([scene("push")])[0][0]
    snapshot = pool.snapshot(member)
    with pytest.raises(
        SimulatorError, match="the snapshot is of task 'push', seed 0; the scene is task 'push', seed 1"
    ):
        pool.restore(scene("push", 1), snapshot)
    with pytest.raises(
        SimulatorError, match="the snapshot is of task 'push', seed 0; the scene is task 'reach', seed 0"
    ):
        pool.restore(scene("reach"), snapshot)
    with pytest.raises(SimulatorError, match="damaged snapshot"):
        pool.restore(member.scene, snapshot[:-1] + bytes([snapshot[-1] ^ 1]))
    assert pool.snapshot(pool.restore(member.scene, snapshot)) == snapshot
    assert pool.counters.host_restarts == 0


def test_the_state_holds_nothing_about_objects(pool: SimPool) -> None:
    """Two scenes of one task differ in objects and goal alone: the images differ, the state does not."""
    members = [group[0] for group in pool.start([scene("push", i) for i in range(3)])]
    observations = pool.observe(members)
    np.testing.assert_array_equal(observations.state, observations.state[[0, 0, 0]])
    assert not np.array_equal(observations.images[0], observations.images[1])
    assert pool.info.state_names == ("hand_x", "hand_y", "hand_z", "gripper_opening")
    pool.release(members)


@pytest.mark.parametrize("task", ["reach", "drawer-open", "pick-place"])
def test_experts_solve_their_tasks(pool: SimPool, task: str) -> None:
    live = [group[0] for group in pool.start([scene(task, i) for i in range(2)])]
    solved = 0
    for _ in range(150):
        outcome = pool.step_chunk(live, pool.expert_actions(live)[:, None])
        solved += int(outcome.success.sum())
        live = [member for member, done in zip(live, outcome.done, strict=True) if not done]
        if not live:
            break
    assert solved == 2


def test_frames_of_any_camera_and_size(pool: SimPool) -> None:
    members = [group[0] for group in pool.start([scene("door-open"), scene("window-open")])]
    seen = pool.observe(members)
    for i, camera in enumerate(pool.info.cameras):
        np.testing.assert_array_equal(pool.frames(members, camera, 64), seen.images[:, i])
    for size in (32, 300, 64):
        frames = pool.frames(members, "corner", size)
        assert frames.shape == (2, size, size, 3)
        assert frames.std() > 2
    np.testing.assert_array_equal(pool.frames(members, "corner2", 64), seen.images[:, 0])
    with pytest.raises(UnknownNameError, match="unknown metaworld camera 'corner9'; did you mean 'corner"):
        pool.frames(members, "corner9", 64)
    with pytest.raises(
        SimulatorError, match="frames were asked for with 4096 pixels; the size must be between 8 and 2048"
    ):
        pool.frames(members, "corner", 4096)
    pool.release(members)


def test_chosen_cameras_in_the_given_order() -> None:
    spec = dataclasses.replace(SPEC, cameras=("topview", "corner2"), image_size=32, quality="default")
    with SimPool(spec) as pool:
        member = pool.start([scene("reach")])[0][0]
        images = pool.observe([member]).images
        assert images.shape == (1, 2, 32, 32, 3)
        np.testing.assert_array_equal(images[:, 1], pool.frames([member], "corner2", 32))


def test_perturbed_images_show_the_same_scene_differently(pool: SimPool) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 8, 4)).astype(np.float32)
    member = pool.start([scene("door-open")])[0][0]
    pool.step_chunk([member], actions)
    plain, snapshot = pool.observe([member]), pool.snapshot(member)
    seen = {}
    for perturbation, strength in (("camera", 0.3), ("camera", 1.0), ("colours", 0.5), ("colours", 1.0)):
        changes = {"perturbation": perturbation, "perturbation_strength": strength}
        with SimPool(dataclasses.replace(SPEC, **changes)) as other:
            assert other.info.perturbation == f"{perturbation}, strength {strength:g}"
            twin = other.start([scene("door-open")])[0][0]
            other.step_chunk([twin], actions)
            seen[perturbation, strength] = other.observe([twin])
            assert other.snapshot(twin) == snapshot  # physics is the same to the bit
    for observed in seen.values():
        np.testing.assert_array_equal(observed.state, plain.state)
        assert not np.array_equal(observed.images, plain.images)
    images, exchanged = plain.images.astype(float), plain.images[..., (1, 2, 0)].astype(float)
    np.testing.assert_array_equal(seen["colours", 1.0].images, exchanged)
    np.testing.assert_array_equal(seen["colours", 0.5].images, np.rint((images + exchanged) / 2))
    little, much = (np.abs(seen["camera", by].images - images).mean((0, 2, 3, 4)) for by in (0.3, 1.0))
    assert (much > 5).all()  # every camera has turned
    assert (little > 1).all()
    assert (little < much).all()
    pool.release([member])


def test_counters_tell_where_the_time_goes(pool: SimPool) -> None:
    members = pool.start([scene("push")], 2)[0]
    before = pool.counters.copy()
    pool.step_chunk(members, np.zeros((2, 5, 4), np.float32))
    after = pool.counters
    assert after.env_steps - before.env_steps == 10
    assert after.renders - before.renders == 4
    assert after.restores - before.restores == 1  # the first member is loaded already
    assert after.snapshots - before.snapshots == 1  # the second one stays loaded
    parts = [after.sim_s - before.sim_s, after.render_s - before.render_s, after.snapshot_s - before.snapshot_s]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= after.host_busy_s - before.host_busy_s <= after.wait_s - before.wait_s
    assert before.env_steps == after.env_steps - 10
    pool.release(members)


def test_a_single_member_is_never_swapped(pool: SimPool) -> None:
    member = pool.start([scene("push")])[0][0]
    before = pool.counters.copy()
    for chunk in random_chunks(4, 1, 4):
        pool.step_chunk([member], chunk)
    assert pool.counters.restores == before.restores
    assert pool.counters.snapshots == before.snapshots
    pool.release([member])


def test_more_tasks_than_a_host_keeps_compiled(pool: SimPool) -> None:
    """Members of tasks that were long not used keep their state; idle tasks make room."""
    tasks = [name_of(task) for task in all_tasks()[:14]]
    members = [group[0] for group in pool.start([scene(task) for task in tasks])]
    snapshots = [pool.snapshot(member) for member in members]
    pool.release(members[2:])
    extra = [group[0] for group in pool.start([scene(task) for task in ("window-open", "window-close", "sweep")])]
    assert [pool.snapshot(member) for member in members[:2]] == snapshots[:2]
    again = pool.start([scene(tasks[5])])[0][0]
    assert pool.snapshot(again) == snapshots[5]
    pool.release([*members[:2], *extra, again])


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        (
            np.zeros((1, 5, 3), np.float32),
            "actions have shape [1, 5, 3]; expected [1, C, 4]: members, env steps, action dims",
        ),
        (
            np.zeros((2, 5, 4), np.float32),
            "actions have shape [2, 5, 4]; expected [1, C, 4]: members, env steps, action dims",
        ),
        (
            np.zeros((5, 4), np.float32),
            "actions have shape [5, 4]; expected [1, C, 4]: members, env steps, action dims",
        ),
        (
            np.zeros((1, 0, 4), np.float32),
            "actions have shape [1, 0, 4]; expected [1, C, 4]: members, env steps, action dims",
        ),
        (np.full((1, 5, 4), np.nan), "actions of row 0 (metaworld/push) are NaN or infinite; the policy has diverged"),
        (np.full((1, 5, 4), np.inf), "actions of row 0 (metaworld/push) are NaN or infinite; the policy has diverged"),
        (np.full((1, 5, 4), "a"), "actions have dtype <U1; expected numbers"),
    ],
)
def test_wrong_actions_are_refused(pool: SimPool, actions: np.ndarray, text: str) -> None:
    member = pool.start([scene("push")])[0][0]
    with pytest.raises(SimulatorError) as caught:
        pool.step_chunk([member], actions)
    assert str(caught.value) == text
    assert not pool.step_chunk([member], np.zeros((1, 5, 4))).done[0]
    pool.release([member])


def test_members_must_be_known_and_named_once(pool: SimPool) -> None:
    member = pool.start([scene("push")])[0][0]
    with pytest.raises(SimulatorError, match="a member appears twice in one step_chunk"):
        pool.step_chunk([member, member], np.zeros((2, 5, 4)))
    pool.release([member])
    pool.release([member])
    text = (
        f"member {member.id} of metaworld/push is not known to this SimPool; it was released or belongs to another pool"
    )
    for misuse in (pool.observe, pool.expert_actions):
        with pytest.raises(SimulatorError) as caught:
            misuse([member])
        assert str(caught.value) == text
    with pytest.raises(SimulatorError, match="is not known to this SimPool"):
        pool.snapshot(Member(scene=scene("push"), id=0))


def test_unknown_tasks_and_settings_are_refused(pool: SimPool) -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'metaworld/pusch'; did you mean 'metaworld/push'"):
        pool.start([Scene.of_split("metaworld/pusch", "train", 0)])
    with pytest.raises(SimulatorError, match="start was asked for 0 members per scene"):
        pool.start([scene("push")], 0)
    with pytest.raises(UnknownNameError, match="unknown simulator 'metaword'; did you mean 'metaworld'"):
        SimSpec(simulator="metaword")
    with pytest.raises(UnknownNameError, match="unknown rendering quality 'best'; did you mean 'fast'"):
        SimSpec(simulator="metaworld", quality="best")
    with pytest.raises(UnknownNameError, match="unknown perturbation 'color'; did you mean 'colours'"):
        SimSpec(simulator="metaworld", perturbation="color")
    with pytest.raises(ConfigError, match="perturbation_strength is 2; of colours it must be above 0, at most 1"):
        SimSpec(simulator="metaworld", perturbation="colours", perturbation_strength=2)
    with pytest.raises(ConfigError, match="image_size is 4; it must be between 8 and 2048 pixels"):
        SimSpec(simulator="metaworld", image_size=4)
    with pytest.raises(ConfigError, match="horizon is -1"):
        SimSpec(simulator="metaworld", horizon=-1)
    with pytest.raises(ConfigError, match="cameras are corner, corner; each may be named once"):
        SimSpec(simulator="metaworld", cameras=("corner", "corner"))
    with pytest.raises(ConfigError, match="hosts is 0"):
        SimPool(SPEC, 0)
    with pytest.raises(ConfigError, match=r"timeout_s is 0\.1; it must be at least 1 seconds"):
        SimPool(SPEC, 1, timeout_s=0.1)


def test_unknown_cameras_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        SimPool(dataclasses.replace(SPEC, cameras=("gripperPov",)))
    assert str(caught.value).startswith("unknown MetaWorld camera 'gripperPov'; did you mean 'gripperPOV'")


def test_calls_without_members_and_after_close() -> None:
    with SimPool(SPEC) as pool:
        assert pool.start([]) == []
        assert pool.observe([]).images.shape == (0, 2, 64, 64, 3)
        assert len(pool.step_chunk([], np.zeros((0, 5, 4))).executed) == 0
        assert pool.expert_actions([]).shape == (0, 4)
    with pytest.raises(SimulatorError, match="this SimPool is closed"):
        pool.start([scene("push")])
    pool.close()


def test_members_move_to_an_idle_host_and_nothing_changes() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 16, 4, 4))

    def play(hosts: int) -> tuple[list[ChunkOutcome], list[int]]:
        with SimPool(SimSpec(simulator="metaworld", image_size=16), hosts) as pool:
            scenes = [Scene.of_split("metaworld/lever-pull", "train", i) for i in range(2)]
            members = [member for group in pool.start(scenes, 8) for member in group]
            outcomes = [pool.step_chunk(members, actions[0])]
            outcomes += [pool.step_chunk(members[:8], actions[k, :8]) for k in range(1, 4)]
            return outcomes, [pool.host_of(member) for member in members[:8]]

    alone, _ = play(1)
    together, hosts = play(2)
    assert sorted(hosts) == [0] * 4 + [1] * 4
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first.observations.images, second.observations.images)
        np.testing.assert_array_equal(first.observations.state, second.observations.state)
        np.testing.assert_array_equal(first.executed, second.executed)


def test_a_chunk_tells_how_near_the_gripper_came(pool: SimPool) -> None:
    """The scripted expert comes to the drawer's handle; a hand that stays does not. Each chunk counts its own steps."""
    (group,) = pool.start([scene("drawer-open")], 2)
    still, nearest = np.zeros((1, 1, 4), np.float32), []
    assert pool.step_chunk([group[1]], still).nearest == pytest.approx(0.2, abs=0.05)
    for _ in range(100):
        outcome = pool.step_chunk([group[0]], pool.expert_actions([group[0]])[:, None])
        assert outcome.nearest is not None
        assert outcome.nearest.shape == (1,)
        nearest.append(float(outcome.nearest[0]))
        if outcome.done[0]:
            break
    assert outcome.success[0]
    assert nearest[0] > 0.15
    assert min(nearest) < 0.05
    assert min(nearest) < nearest[0] / 3
    pool.release(group)
