"""The update on a GPU: bfloat16 with float32 masters, and prefixes in device memory, pinned memory or nowhere.

Needs a CUDA device.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import TASK, ToyPool, toy_policy
from z1.config import ActingConfig, RolloutConfig, UpdateConfig
from z1.policy.host_memory import HostMemory
from z1.policy.prefix_cache import PrefixStore
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import build_training_batch
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.train.learner import Learner, UpdateStats
from z1.train.objectives import make_objective
from z1.train.score import advantage_weights_of
from z1.types import Scene

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ACTING = ActingConfig(denoise_steps=4, chunk_length=1)
ROLLOUT = RolloutConfig(groups=4, group_size=4, plan="tree", prefix=4)


def updated(
    device_bytes: int = 10**9, host_bytes: int = 0, **settings: Any
) -> tuple[dict[str, Tensor], UpdateStats, PrefixStore | None]:
    """Masters and diagnostics after an update in bfloat16."""
    policy = toy_policy().to("cuda")
    update = UpdateConfig(**{"learning_rate": 1e-3, "epochs": 2, "target_kl": 1e9, "microbatch": 16, **settings})
    objective = make_objective(update, ACTING, ROLLOUT, counted_dims=range(2), seeds=Seeds(1))
    learner = Learner(policy, objective, update, Seeds(1), precision="auto")
    store = None
    if update.mode == "expert":
        store = PrefixStore(policy.model, device_bytes=device_bytes, host_bytes=host_bytes)
    pool = ToyPool(outcome=lambda scene, member: (scene.seed + member) % 3 == 0)
    rollouts = Collector(pool, policy, ACTING, live_members=96, store=store).collect(
        (Scene.of_split(TASK, "train", index) for index in itertools.count()),
        Seeds(1),
        ("iteration", 0),
        plan=lambda number: BranchPlan.tree(4, 4),
        groups=4,
        explore=Exploration(noise_level=0.5, exclude_last_step=True),
    )
    weights = [advantage_weights_of(group, ROLLOUT).spread(group.segment_lengths) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, weights, rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    stats = learner.update(batch, 0)
    assert stats is not None
    return {name: tensor.detach().cpu() for name, tensor in learner.trained.by_name.items()}, stats, store


@pytest.mark.parametrize("mode", ["expert", "joint", "joint_frozen_vision", "lora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_first_ratio_is_exactly_one(mode: str, recompute: bool) -> None:
    masters, stats, _ = updated(mode=mode, recompute_activations=recompute)
    assert stats.first_ratio_max == 0.0
    assert stats.ratio_max > 0.0
    assert all(tensor.dtype == torch.float32 for tensor in masters.values())


def test_the_host_gives_back_what_the_device_computed() -> None:
    ours, stats, store = updated(device_bytes=50_000, host_bytes=10**9)
    theirs, expected, _ = updated()
    assert store is not None
    assert store.counters.host_hits > 0
    assert store.counters.device_hits > 0
    assert stats.loss == expected.loss
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def test_prefixes_that_are_computed_again_differ_by_rounding_only() -> None:
    _, stats, store = updated(device_bytes=0)
    _, expected, _ = updated()
    assert store is not None
    assert store.counters.recomputed > 0
    assert stats.first_ratio_max == 0.0
    assert stats.loss == pytest.approx(expected.loss, abs=0.02)


def test_host_memory_is_pinned() -> None:
    memory = HostMemory(1 << 24, pinned=True)
    tensor = memory.take((100, 100), torch.bfloat16)
    assert tensor is not None
    assert tensor.is_pinned()
    memory.give_back(tensor)
    assert memory.used == 0
