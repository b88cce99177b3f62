"""Collision checks that are left out: nothing but time changes, and what moves is checked again."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from z1.sims.still_bodies import StillBodies

MODEL = """
<mujoco>
  <option timestep="0.002" gravity="0 0 -9.81"/>
  <worldbody>
    <geom name="floor" type="plane" size="3 3 0.1"/>
    <body name="cabinet" pos="0 0 0.5">
      <geom name="stop" type="box" size="0.02 0.2 0.2" pos="0.4 0 0" {bits}/>
      <geom name="shelf" type="box" size="0.3 0.2 0.01" pos="0 0 -0.2"/>
      <body name="drawer">
        <joint name="drawer" type="slide" axis="1 0 0" damping="2" frictionloss="0.1"/>
        <geom name="drawer" type="box" size="0.1 0.1 0.1"/>
      </body>
      <body name="other" pos="0 0.5 0">
        <joint name="other" type="hinge" axis="0 0 1" damping="1"/>
        <geom name="other" type="box" size="0.1 0.1 0.1"/>
      </body>
    </body>
    <body name="cup" pos="1 1 0.06"><freejoint/><geom name="cup" type="box" size="0.05 0.05 0.05"/></body>
    <body name="hand" mocap="true" pos="0 -1 2"><geom name="hand" type="sphere" size="0.05"/></body>
    <body name="pusher" pos="-0.5 0 0.5">
      <joint name="pusher" type="slide" axis="1 0 0" damping="5"/>
      <geom name="pusher" type="box" size="0.05 0.05 0.05"/>
    </body>
  </worldbody>
  <actuator><motor joint="pusher"/></actuator>
</mujoco>
"""


class Simulation:
    """As robosuite's: computes contacts, then takes forces."""

    def __init__(self, bits: str = "") -> None:
        self.model = mujoco.MjModel.from_xml_string(MODEL.format(bits=bits))
        self.data = mujoco.MjData(self.model)

    def step1(self) -> None:
        mujoco.mj_step1(self.model, self.data)

    def forward(self) -> None:
        mujoco.mj_forward(self.model, self.data)

    def state(self) -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    def load(self, state: np.ndarray) -> None:
        for again in (False, True):
            mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
            if not again:
                self.forward()


class Watched:
    """A simulation, with or without checks left out, and everything that it computed."""

    def __init__(self, *, still: bool, bits: str = "") -> None:
        self.sim = Simulation(bits)
        self.still = StillBodies(mujoco, self.sim.model, self.sim.data)
        if still:
            self.still.watch(self.sim)
        else:
            self.sim = Simulation(bits)
        self.seen: list[np.ndarray] = []
        self.asleep: list[set[str]] = []

    def run(self, env_steps: int, force: float) -> None:
        data = self.sim.data
        for _ in range(env_steps):
            self.still.look_again()
            for _ in range(10):
                self.sim.step1()
                data.ctrl[:] = force
                mujoco.mj_step2(self.sim.model, data)
                self.seen += [
                    self.sim.state(),
                    data.contact.geom.copy(),
                    data.contact.dist.copy(),
                    data.efc_force.copy(),
                ]
            self.asleep.append({self.name(number) for number in self.still.asleep})

    def name(self, tree: int) -> str:
        body = int(np.flatnonzero(self.sim.model.body_treeid == tree)[0])
        return str(mujoco.mj_id2name(self.sim.model, mujoco.mjtObj.mjOBJ_BODY, body))


def scenario(it: Watched) -> Watched:
    """Nothing happens; the pusher pushes the drawer against its stop; then another member's state, and back."""
    it.run(5, 0.0)
    start = it.sim.state()
    it.run(60, 20.0)
    middle = it.sim.state()
    for state in (start, middle, start):
        it.still.look_again()
        it.sim.load(state)
        it.run(4, 20.0)
    return it


def equal(one: Watched, other: Watched) -> bool:
    return len(one.seen) == len(other.seen) and all(map(np.array_equal, one.seen, other.seen))


def contacts(it: Watched) -> set[frozenset[str]]:
    model = it.sim.model
    pairs = np.concatenate([pairs for pairs in it.seen[1::4] if len(pairs)])
    names = [str(mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, geom)) for geom in range(model.ngeom)]
    return {frozenset(names[geom] for geom in pair) for pair in np.unique(pairs, axis=0)}


def test_nothing_but_time_changes() -> None:
    plain, still = scenario(Watched(still=False)), scenario(Watched(still=True))
    assert contacts(plain) == {
        frozenset(pair) for pair in (("floor", "cup"), ("pusher", "drawer"), ("drawer", "stop"))
    }, "the scenario tests nothing"
    assert equal(plain, still)
    assert {"drawer", "other", "pusher"} <= still.asleep[4]
    assert not any("cup" in asleep for asleep in still.asleep), "it touches the floor"
    assert "drawer" not in still.asleep[40], "it is pushed"
    assert "other" in still.asleep[40]
    assert "other" in still.asleep[-1]


def test_what_moves_must_be_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scenario(Watched(still=False))
    change = StillBodies._change

    def never_wakes(self: StillBodies, asleep: list[int]) -> None:
        change(self, list(dict.fromkeys([*self.asleep, *asleep])))

    monkeypatch.setattr(StillBodies, "_change", never_wakes)
    wrong = scenario(Watched(still=True))
    assert not equal(plain, wrong)
    assert frozenset(("drawer", "stop")) not in contacts(wrong)


def test_bodies_that_are_moved_in_the_model_wake() -> None:
    runs = []
    for still in (False, True):
        it = Watched(still=still)
        it.run(5, 0.0)
        it.sim.model.body("other").pos[:] = [0.3, 0.12, 0.0]  # into the stop
        it.run(5, 0.0)
        runs.append(it)
    assert frozenset(("other", "stop")) in contacts(runs[0])
    assert equal(*runs)


def test_the_hand_that_is_placed_touches_what_sleeps() -> None:
    runs = []
    for still in (False, True):
        it = Watched(still=still)
        it.run(5, 0.0)
        it.sim.data.mocap_pos[:] = it.sim.data.body("other").xpos + np.array([0.0, -0.13, 0.0])
        it.run(5, 0.0)
        runs.append(it)
    assert "other" in runs[1].asleep[4]
    assert frozenset(("other", "hand")) in contacts(runs[0])
    assert equal(*runs)


@pytest.mark.parametrize(("bits", "watched"), [('contype="2"', False), ('contype="0" conaffinity="1"', True)])
def test_other_collision_bits(bits: str, *, watched: bool) -> None:
    plain, still = (scenario(Watched(still=still, bits=bits)) for still in (False, True))
    assert equal(plain, still)
    assert any(still.asleep) is watched
    assert frozenset(("drawer", "stop")) in contacts(plain)
