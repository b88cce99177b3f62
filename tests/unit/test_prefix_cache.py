"""The store of VLM prefixes: tiers under tiny budgets, sharing, refusal of stale entries, checkpoints, host memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from toy import TASK, ToyPool, toy_policy
from z1.config import ActingConfig, RolloutConfig, UpdateConfig
from z1.policy.host_memory import HostMemory, slot_size
from z1.policy.pi05 import ModelInput, PrefixCache
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixStore, StalePrefixError, StoredPrefixes
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import Rollouts, build_training_batch
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.train.learner import Learner
from z1.train.objectives import make_objective
from z1.train.score import advantage_weights_of
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=4, chunk_length=1)
ROLLOUT = RolloutConfig(groups=4, group_size=4, plan="tree", prefix=4)
DEPTH, WIDTH, IMAGE_TOKENS = 2, 32, 4
TOKEN_BYTES = 2 * DEPTH * WIDTH * 4


@pytest.fixture(scope="module")
def policy() -> Policy:
    return toy_policy()


def inputs_of(policy: Policy, lengths: list[int], *, seed: int = 0) -> ModelInput:
    """Observations with texts of given lengths, among padding."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    count, size = len(lengths), policy.config.image_size
    return ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (count, 1, 3, size, size), dtype=np.uint8)),
        image_mask=torch.ones(count, 1, dtype=torch.bool),
        tokens=torch.from_numpy(rng.integers(3, 200, (count, 20))),
        token_mask=torch.arange(20) < torch.tensor(lengths)[:, None],
    )


def add(store: PrefixStore, policy: Policy, lengths: list[int], *, seed: int = 0) -> StoredPrefixes:
    inputs = inputs_of(policy, lengths, seed=seed)
    with torch.no_grad():
        return store.add(policy.model.encode_prefix(inputs), inputs)


def assert_same(ours: PrefixCache, theirs: PrefixCache) -> None:
    for name in ("keys", "values", "mask"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.full == theirs.full


def entry_bytes(text: int) -> int:
    return (IMAGE_TOKENS + text) * TOKEN_BYTES


def test_an_entry_takes_keys_and_values_of_its_tokens(policy: Policy) -> None:
    store = PrefixStore(policy.model)
    add(store, policy, [5, 9, 7])
    assert store.device_bytes == 3 * entry_bytes(9), "as many tokens as the longest that it was encoded with"
    assert (len(store), store.host_bytes) == (3, 0)


TIERS = {
    "device": (10**9, 0, (6, 0, 0)),
    "host": (0, 10**9, (0, 6, 0)),
    "neither": (0, 0, (0, 0, 6)),
    "all three": (2 * entry_bytes(9), 3 * slot_size(entry_bytes(9)), (2, 3, 1)),
    "one byte too little": (2 * entry_bytes(9) - 1, 3 * slot_size(entry_bytes(9)) - 1, (1, 2, 3)),
}


@pytest.mark.parametrize(("device", "host", "tiers"), TIERS.values(), ids=TIERS)
def test_every_tier_gives_the_same_prefixes(
    device: int, host: int, tiers: tuple[int, int, int], policy: Policy
) -> None:
    """Six observations from two calls, in any order and several times."""
    store = PrefixStore(policy.model, device_bytes=device, host_bytes=host)
    rows = StoredPrefixes.concat([add(store, policy, [5, 9, 7]), add(store, policy, [9, 9, 9], seed=1)])
    with torch.no_grad():
        encoded = [policy.model.encode_prefix(inputs_of(policy, n, seed=s)) for s, n in enumerate(([5, 9, 7], [9] * 3))]
    expected = PrefixCache.concat(encoded)
    assert_same(rows.fetch(), expected)
    counters = store.counters
    assert (counters.device_hits, counters.host_hits, counters.recomputed) == tiers
    index = torch.tensor([4, 0, 0, 5, 2])
    assert_same(rows.rows(index).fetch(), expected.rows(index))


@pytest.mark.parametrize(("device", "host"), [(10**9, 0), (0, 10**9), (0, 0)])
def test_prefixes_of_different_lengths_are_padded(device: int, host: int, policy: Policy) -> None:
    store = PrefixStore(policy.model, device_bytes=device, host_bytes=host)
    parts = [add(store, policy, [6, 6], seed=2), add(store, policy, [11], seed=3)]
    rows = StoredPrefixes.concat(parts)
    with torch.no_grad():
        encoded = [policy.model.encode_prefix(inputs_of(policy, n, seed=s)) for n, s in (([6, 6], 2), ([11], 3))]
    assert [part.full for part in parts] == [True, True]
    assert not rows.full, "the short ones are padded"
    assert_same(rows.fetch(), PrefixCache.concat(encoded))
    assert_same(rows.rows(torch.tensor([0])).fetch(), PrefixCache.concat(encoded).rows(torch.tensor([0])))


def test_a_shared_observation_is_encoded_again_only_once(policy: Policy) -> None:
    store = PrefixStore(policy.model, device_bytes=0)
    rows = add(store, policy, [5, 5]).rows(torch.tensor([1, 1, 0, 1]))
    rows.fetch()
    assert store.counters.recomputed == 2


def nudge_weight(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("vlm.layers.0.attention.qkv.weight")[0, 0] += 1e-3


def step_optimizer(model: torch.nn.Module) -> None:
    weight = model.get_parameter("vision.patch.weight")
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1e-3).step()


def load_weights(model: torch.nn.Module) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


def move_weights(model: torch.nn.Module) -> None:
    model.to(torch.float64)


@pytest.mark.parametrize("change", [nudge_weight, step_optimizer, load_weights, move_weights])
@pytest.mark.parametrize("device_bytes", [10**9, 0])
def test_entries_of_other_weights_are_refused(change: Callable[[torch.nn.Module], None], device_bytes: int) -> None:
    policy = toy_policy()
    store = PrefixStore(policy.model, device_bytes=device_bytes)
    rows = add(store, policy, [5])
    rows.fetch()
    change(policy.model)
    with pytest.raises(StalePrefixError) as caught:
        rows.fetch()
    assert str(caught.value) == "the VLM prefix of observation 0 was computed with other weights than the VLM has now"


def test_the_expert_may_change() -> None:
    policy = toy_policy()
    store = PrefixStore(policy.model)
    rows = add(store, policy, [5])
    before = rows.fetch()
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name.startswith(("expert.", "action_", "time_")):
                parameter += 1
    assert_same(rows.fetch(), before)


@pytest.mark.parametrize("tier", ["device", "host"])
def test_what_was_given_up_is_refused_and_its_memory_is_free(tier: str, policy: Policy) -> None:
    room = 2 * slot_size(entry_bytes(9))
    store = PrefixStore(policy.model, device_bytes=room * (tier == "device"), host_bytes=room * (tier == "host"))
    first = add(store, policy, [9, 9])
    kept = first.rows(torch.tensor([1])).fetch()
    store.retain([1])
    assert len(store) == 1
    with pytest.raises(StalePrefixError, match="the VLM prefix of observation 0 was given up; nothing may ask for it"):
        first.fetch()
    second = add(store, policy, [9, 9], seed=4)
    second.fetch()
    assert (store.counters.device_hits + store.counters.host_hits, store.counters.recomputed) == (2, 1)
    assert_same(first.rows(torch.tensor([1])).fetch(), kept)
    store.release([0, 1, 2, 3])
    assert (len(store), store.device_bytes, store.host_bytes) == (0, 0, 0)


def test_a_checkpoint_puts_every_entry_back_where_it_was(policy: Policy) -> None:
    budgets = {"device_bytes": 2 * entry_bytes(9), "host_bytes": 2 * slot_size(entry_bytes(9))}
    store, other = (PrefixStore(policy.model, **budgets) for _ in range(2))
    rows = add(store, policy, [9, 4, 6, 9, 9, 8])
    expected = rows.rows(torch.tensor([1, 2, 3, 5])).fetch()
    state = {name: tensor.clone() for name, tensor in store.state([5, 1, 2, 3, 3]).items()}
    assert [name for name in state if name.startswith("5.")] == [
        "5.mask",
        "5.inputs.images",
        "5.inputs.image_mask",
        "5.inputs.tokens",
        "5.inputs.token_mask",
    ]
    other.load_state(state)
    assert len(other) == 4
    assert (other.device_bytes, other.host_bytes) == (entry_bytes(9), 2 * slot_size(entry_bytes(9)))
    again = StoredPrefixes(store=other, ids=torch.tensor([1, 2, 3, 5]), length=rows.length, full=rows.full)
    assert_same(again.fetch(), expected)
    assert (other.counters.device_hits, other.counters.host_hits, other.counters.recomputed) == (1, 2, 1)
    assert add(other, policy, [3]).ids.tolist() == [6], "numbers go on"


def test_without_host_memory_entries_of_a_checkpoint_go_to_the_device(policy: Policy) -> None:
    store, other = (PrefixStore(policy.model, device_bytes=0, host_bytes=room) for room in (10**9, 0))
    rows = add(store, policy, [9])
    other.load_state(store.state([0]))
    assert (other.device_bytes, other.host_bytes) == (entry_bytes(9), 0)
    assert_same(StoredPrefixes(store=other, ids=rows.ids, length=rows.length, full=True).fetch(), rows.fetch())


class FakeStream:
    """Stands in for a CUDA stream and writes down what is asked of it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self.log.append(f"{self.name} is marked")
        return f"mark of {self.name}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def synchronize(self) -> None:
        self.log.append(f"the CPU waits for {self.name}")


def test_copies_run_beside_the_computing_in_order(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CUDA's streams: a copy waits for what was begun before, what comes later waits for it."""
    log: list[str] = []
    compute, side = FakeStream("compute", log), FakeStream("copies", log)

    @contextmanager
    def stream(entered: FakeStream) -> Iterator[None]:
        log.append(f"{entered.name}: begin")
        yield
        log.append(f"{entered.name}: end")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    store = PrefixStore(policy.model, device_bytes=0, host_bytes=10**9)
    monkeypatch.setattr(store._copies, "_stream", side)
    copies = ["copies waits for compute", "copies: begin", "copies: end"]
    rows = add(store, policy, [5])
    assert log == copies
    pending = rows.begin()
    assert log == [*copies, *copies, "copies is marked"]
    pending.result()
    assert log[7:] == ["compute waits for mark of copies"]
    store.state([0])
    assert log[8:] == ["the CPU waits for copies"]


def test_host_memory_is_taken_within_the_budget_and_used_again() -> None:
    size = slot_size(1000)
    memory = HostMemory(2 * size, pinned=False)
    first, second = memory.take((10, 25), torch.float32), memory.take((500,), torch.bfloat16)
    assert first is not None
    assert second is not None
    first.fill_(1)
    second.fill_(2)
    assert (float(first.sum()), float(second.sum())) == (250, 1000), "they do not overlap"
    assert memory.used == 2 * size
    assert memory.take((250,), torch.float32) is None
    memory.give_back(first)
    third = memory.take((125,), torch.float64)
    assert third is not None
    third.fill_(3)
    assert float(second.sum()) == 1000
    assert third.data_ptr() == first.data_ptr()


@pytest.mark.parametrize("nbytes", [1, 64, 65, 999, 1 << 20, (1 << 20) + 1, 17_842_176])
def test_slots_waste_at_most_an_eighth_of_large_entries(nbytes: int) -> None:
    size = slot_size(nbytes)
    assert size >= nbytes
    assert size % 64 == 0
    if nbytes > 1 << 10:
        assert size <= nbytes * 9 / 8


def collect(policy: Policy, store: PrefixStore | None, **changes: Any) -> Rollouts:
    pool = ToyPool(outcome=lambda scene, member: (scene.seed + member) % 3 == 0)
    return Collector(pool, policy, ACTING, live_members=96, store=store).collect(
        (Scene.of_split(TASK, "train", index) for index in itertools.count()),
        Seeds(1),
        ("iteration", 0),
        **{
            "plan": lambda number: BranchPlan.tree(4, 4),
            "groups": 4,
            "explore": Exploration(noise_level=0.5, exclude_last_step=True),
            **changes,
        },
    )


def test_one_entry_for_all_members_that_see_the_same(policy: Policy) -> None:
    store = PrefixStore(policy.model)
    rollouts = collect(policy, store)
    assert len(store) == rollouts.cost.vlm_prefixes < rollouts.cost.chunks
    prefixes = [tick.prefix for tick in rollouts.ticks if tick.prefix is not None]
    assert len({number for prefix in prefixes for number in prefix.ids.tolist()}) == len(store)
    assert store.device_bytes == sum(len(set(prefix.ids.tolist())) * prefix.length * TOKEN_BYTES for prefix in prefixes)


def test_dropped_groups_give_up_their_entries(policy: Policy) -> None:
    store = PrefixStore(policy.model)
    rollouts = collect(policy, store, keep=lambda group: group.scene.seed % 2 == 0)
    assert len(rollouts.dropped) >= 3
    places = {place for group in rollouts.kept for segment in group.segments for place in segment.places}
    kept = {int(rollouts.ticks[tick].prefix.ids[row]) for tick, row in places}  # type: ignore[union-attr]
    assert kept == set(store._entries)


def updated(store_of: Callable[[Policy], PrefixStore], **settings: Any) -> tuple[dict[str, Tensor], Any, PrefixStore]:
    """Weights and diagnostics after an update on chunks collected with some store."""
    policy = toy_policy()
    store = store_of(policy)
    rollouts = collect(policy, store)
    weights = [advantage_weights_of(group, ROLLOUT).spread(group.segment_lengths) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, weights, rollouts.ticks, ACTING.chunk_length)
    update = UpdateConfig(**{"learning_rate": 1e-3, "epochs": 2, "target_kl": 1e9, "microbatch": 7, **settings})
    objective = make_objective(update, ACTING, ROLLOUT, counted_dims=range(2), seeds=Seeds(1))
    stats = Learner(policy, objective, update, Seeds(1)).update(batch, 0)  # type: ignore[arg-type]
    return dict(policy.model.state_dict()), stats, store


@pytest.mark.parametrize("settings", [{}, {"minibatch": 20}, {"objective": "awfm", "awfm_negative": 0.5}])
@pytest.mark.parametrize("budgets", [(0, 0), (0, 10**9), (16 * entry_bytes(28), 8 * slot_size(entry_bytes(28)))])
def test_an_update_does_not_depend_on_the_store(budgets: tuple[int, int], settings: dict[str, Any]) -> None:
    whole, expected, all_kept = updated(lambda policy: PrefixStore(policy.model), **settings)
    device, host = budgets
    ours, stats, store = updated(
        lambda policy: PrefixStore(policy.model, device_bytes=device, host_bytes=host), **settings
    )
    assert stats.first_ratio_max == 0.0
    for name in ("loss", "approx_kl", "ratio_max", "grad_norm", "acting_log_prob_gap"):
        assert getattr(stats, name) == getattr(expected, name), name
    for name, tensor in whole.items():
        assert torch.equal(ours[name], tensor), name
    assert all_kept.counters.recomputed == 0 < all_kept.counters.device_hits
    counters = store.counters
    kinds = (counters.device_hits > 0, counters.host_hits > 0, counters.recomputed > 0)
    assert kinds == (device > 0, host > 0, host < 10**9)
