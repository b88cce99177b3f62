"""A simulator of a point that is to be moved to one side, in memory: the methods of SimPool that the loop uses.

The image shows which side; each env step moves the point by a quarter of the action. An episode succeeds once the point
has gone ``REACH`` to that side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from z1.data.stats import compute_stats
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.policy import Policy
from z1.rollout.groups import RolloutGroup
from z1.rollout.tree import ChunkWeights, SegmentWeights
from z1.sims.spec import SimCounters
from z1.types import ChunkOutcome, Observations, Scene, SimInfo

TASK = "toy/side"
SIZE = 16
HORIZON = 8
REACH = 1.0
SPEED = 0.25
SIDES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float32)
INSTRUCTION = "move"

CONFIG = PolicyConfig.tiny(
    image_size=SIZE,
    patch=8,
    width=32,
    depth=2,
    vision_width=32,
    vision_depth=1,
    expert_width=32,
    horizon=4,
    action_dim=4,
    max_tokens=32,
)

Outcome = Callable[[Scene, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyMember:
    """A handle.

    Attributes:
        scene: Its scene.
        group: Number of the group that it was started with or forked from.
        number: Its number in that group, in the order of starting and forking; 0 is the one that leads from the start.
        id: Unique within the pool.
    """

    scene: Scene
    group: int
    number: int
    id: int


@dataclass(slots=True, kw_only=True)
class _State:
    position: np.ndarray = field(default_factory=lambda: np.zeros(2, np.float32))
    steps: int = 0


class ToyPool:
    """Stands in for SimPool.

    Args:
        outcome: Decides success at the horizon by scene and the handle's number; None: the point has to arrive.
        lost: Decides by the same which handles are lost in their second chunk, or in the first one after their fork.
        success_at: Env steps after which a handle succeeds, by the same; 0: never.
        horizon: Env steps of an episode.
        nearest: Distance to the object in each chunk of a handle, by the same; None: not told.
        model_per_scene: Whether it says that every scene is a model of its own.
    """

    def __init__(
        self,
        *,
        outcome: Outcome | None = None,
        lost: Callable[[Scene, int], bool] | None = None,
        success_at: Callable[[Scene, int], int] | None = None,
        horizon: int = HORIZON,
        nearest: Callable[[Scene, int], float] | None = None,
        model_per_scene: bool = False,
    ) -> None:
        self._nearest = nearest
        self.info = SimInfo(
            simulator="toy",
            version="1",
            renderer="none",
            python="",
            tasks=("side",),
            cameras=("front",),
            all_cameras=("front",),
            image_size=SIZE,
            action_names=("x", "y"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            state_names=("x", "y"),
            control_hz=10.0,
            model_per_scene=model_per_scene,
        )
        self.horizon = horizon
        self.counters = SimCounters()
        self.started: list[Scene] = []
        self.forked: list[list[int]] = []
        self.released = 0
        self.batches: list[int] = []
        self._outcome, self._lost, self._success_at = outcome, lost, success_at
        self._states: dict[int, _State] = {}
        self._next = 0
        self._sizes: list[int] = []

    def horizon_of(self, task: str) -> int:
        """Env steps of an episode."""
        return self.horizon

    def start(self, scenes: Sequence[Scene], members: int = 1) -> list[list[ToyMember]]:
        """Members at the middle."""
        groups = []
        for scene in scenes:
            self.started.append(scene)
            self._sizes.append(0)
            groups.append([self._member(scene, len(self._sizes) - 1, _State()) for _ in range(members)])
        return groups

    def fork(self, members: Sequence[ToyMember], copies: Sequence[int]) -> list[list[ToyMember]]:
        """Members where others are, with numbers of their own."""
        self.forked.append(list(copies))
        return [
            [self._member(member.scene, member.group, replace(self._states[member.id])) for _ in range(count)]
            for member, count in zip(members, copies, strict=True)
        ]

    def _member(self, scene: Scene, group: int, state: _State) -> ToyMember:
        member = ToyMember(scene=scene, group=group, number=self._sizes[group], id=self._next)
        self._states[member.id] = state
        self._sizes[group] += 1
        self._next += 1
        return member

    def observe(self, members: Sequence[ToyMember]) -> Observations:
        """What the policy sees."""
        return Observations(
            images=np.stack([image_of(member.scene)[None] for member in members]),
            state=np.stack([self._states[member.id].position for member in members]),
            instructions=(INSTRUCTION,) * len(members),
        )

    def step_chunk(self, members: Sequence[ToyMember], actions: np.ndarray) -> ChunkOutcome:
        """Moves the points."""
        assert actions.shape[0] == len(members), actions.shape
        assert np.isfinite(actions).all()
        self.batches.append(len(members))
        rows = [self._step(member, chunk) for member, chunk in zip(members, actions, strict=True)]
        executed, success, truncated, invalid = (np.array(column) for column in zip(*rows, strict=True))
        self.counters.env_steps += int(executed.sum())
        self.counters.invalid_members += int(invalid.sum())
        return ChunkOutcome(
            executed=executed.astype(np.int64),
            success=success,
            truncated=truncated,
            invalid=invalid,
            observations=self.observe(members),
            nearest=None if self._nearest is None else np.array([self._nearest(m.scene, m.number) for m in members]),
        )

    def _step(self, member: ToyMember, actions: np.ndarray) -> tuple[int, bool, bool, bool]:
        state = self._states[member.id]
        if self._lost is not None and state.steps and self._lost(member.scene, member.number):
            return 0, False, False, True
        for number, action in enumerate(actions, start=1):
            state.position = state.position + SPEED * np.clip(action, -1, 1)
            state.steps += 1
            if self._success_at is not None:
                if state.steps == self._success_at(member.scene, member.number):
                    return number, True, False, False
            elif self._outcome is None:
                if state.position @ side_of(member.scene) >= REACH:
                    return number, True, False, False
            elif state.steps == self.horizon:
                good = self._outcome(member.scene, member.number)
                return number, good, not good, False
            if state.steps == self.horizon:
                return number, False, True, False
        return len(actions), False, False, False

    def release(self, members: Sequence[ToyMember]) -> None:
        """Forgets members."""
        for member in members:
            del self._states[member.id]
            self.released += 1

    @property
    def alive(self) -> int:
        """Members not released."""
        return len(self._states)


def side_of(scene: Scene) -> np.ndarray:
    """float32 ``[2]``, the way to go."""
    return SIDES[scene.seed % len(SIDES)]


def image_of(scene: Scene) -> np.ndarray:
    """uint8 ``[SIZE, SIZE, 3]``: the half on the goal's side is lit."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    x, y = side_of(scene).astype(int)
    half = SIZE // 2
    columns = slice(half, SIZE) if x > 0 else slice(0, half) if x < 0 else slice(0, SIZE)
    rows = slice(half, SIZE) if y > 0 else slice(0, half) if y < 0 else slice(0, SIZE)
    image[rows, columns] = 255
    return image


def toy_policy(seed: int = 0, config: PolicyConfig = CONFIG) -> Policy:
    """A policy with random weights."""
    rng = np.random.Generator(np.random.Philox(key=3))
    processor = ProcessorConfig.of_dataset(
        cameras=("front",),
        state_stats=compute_stats(rng.uniform(-1, 1, (200, 2))),
        action_stats=compute_stats(rng.uniform(-1, 1, (200, 2))),
    )
    return Policy.create(config, processor, seed=seed)


def spread(groups: tuple[RolloutGroup, ...], weights: list[SegmentWeights]) -> list[ChunkWeights]:
    """What the chunks of some groups count, from what their segments count."""
    return [own.spread(group.segment_lengths) for group, own in zip(groups, weights, strict=True)]


class ToyDemonstrations:
    """Hesitant demonstrations, with what ``SftTrainer`` asks of a dataset.

    Args:
        episodes: How many.
        pace: Mean action towards the goal.
        spread: Standard deviation of the actions.
        instruction: What all frames say.
        name: Name of the folder.
    """

    def __init__(
        self,
        *,
        episodes: int = 64,
        pace: float = 0.45,
        spread: float = 0.35,
        instruction: str = INSTRUCTION,
        name: str = "toy",
    ) -> None:
        self.path = Path(name)
        self.fps = 10.0
        self.tasks = [instruction]
        rng = np.random.Generator(np.random.Philox(key=7))
        scenes = [Scene.of_split(TASK, "train", index) for index in range(episodes)]
        sides = np.stack([side_of(scene) for scene in scenes])
        shape = (episodes, HORIZON, 2)
        actions = pace * sides[:, None] + spread * rng.standard_normal(shape)
        self.action = np.clip(actions, -1, 1).astype(np.float32).reshape(-1, 2)
        moved = SPEED * self.action.reshape(shape)
        self.state = (np.cumsum(moved, axis=1) - moved).reshape(-1, 2)
        self.episode_index = np.repeat(np.arange(episodes), HORIZON)
        self.episodes = scenes
        self.cameras = ("front",)
        self.num_frames = len(self.action)
        self.stats = {"observation.state": compute_stats(self.state), "action": compute_stats(self.action)}
        self._images = np.repeat(np.stack([image_of(scene) for scene in scenes]), HORIZON, axis=0)

    def images(self, camera: str) -> np.ndarray:
        """All images."""
        return self._images

    def instructions(self, indices: np.ndarray) -> tuple[str, ...]:
        """One per frame."""
        return (self.tasks[0],) * len(indices)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width."""
        return SIZE, SIZE

    def action_chunks(self, indices: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``LeRobotDataset.action_chunks``."""
        last = (self.episode_index[indices] + 1) * HORIZON - 1
        wanted = np.asarray(indices)[:, None] + np.arange(horizon)
        return self.action[np.minimum(wanted, last[:, None])], wanted > last[:, None]
