"""Every way of being quick against the plain way: shared prefixes, appended keys, recorded steps, kept tables."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from z1.errors import ConfigError
from z1.policy.config import PolicyConfig
from z1.policy.denoise import LENGTH_STEP, roomy
from z1.policy.gemma import attend, mask_bias
from z1.policy.past import attend_fused, attend_shared
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.sampler import SampledChunk, chunk_log_prob, sample_chunk
from z1.policy.speed import SpeedSettings

TINY = PolicyConfig.tiny(image_size=32, patch=16, width=64, depth=3, vision_width=32, vision_depth=1, expert_width=64)
LAYOUTS = {
    "one key head": TINY,
    "two key heads": replace(TINY, vlm=replace(TINY.vlm, heads=4, kv_heads=2)),
}
P, G, K = 3, 4, 4
PLAIN = SpeedSettings(trim=False, keep_modulation=False, append_in_place=False, share_prefix=False)


def generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def make(config: PolicyConfig = TINY) -> Pi05:
    """A network whose adaptive norms depend on the time."""
    model, rng = Pi05.initialised(config, generator(1)), generator(2)
    with torch.no_grad():
        weight = model.expert.modulation.weight
        weight.copy_(0.1 * torch.from_numpy(rng.standard_normal(tuple(weight.shape), dtype=np.float32)))
        model.action_out.weight.mul_(10.0)
    return model


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> Pi05:
    return make(LAYOUTS[request.param])


@pytest.fixture(autouse=True)
def _default_speed(model: Pi05) -> None:
    model.speed = SpeedSettings()
    model._recorded.clear()


def observations(key: int = 3, masked: bool = False, rows: int = P, tokens: int = 9) -> ModelInput:
    """With ``masked``, the rows have texts of different length and the last has one camera of two."""
    rng = generator(key)
    lengths = torch.arange(tokens - rows + 1, tokens + 1) if masked else torch.full((rows,), tokens)
    image_mask = torch.ones(rows, 2, dtype=torch.bool)
    image_mask[-1, 1] = not masked
    return ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (rows, 2, 3, 32, 32), dtype=np.uint8)),
        image_mask=image_mask,
        tokens=torch.from_numpy(rng.integers(4, 500, (rows, tokens))),
        token_mask=torch.arange(tokens)[None] < lengths[:, None],
    )


def noise(rows: int, key: int = 5) -> Tensor:
    shape = (rows, TINY.horizon, TINY.action_dim)
    return torch.from_numpy(generator(key).standard_normal(shape, dtype=np.float32))


@torch.no_grad()
def encode(model: Pi05, inputs: ModelInput) -> PrefixCache:
    return model.encode_prefix(inputs)


def sample(model: Pi05, prefix: PrefixCache, initial: Tensor) -> SampledChunk:
    rows = len(initial)
    return sample_chunk(
        model,
        prefix,
        initial_noise=initial,
        denoise_steps=K,
        noise_level=0.5,
        sde_index=torch.arange(rows)[:, None] % K,
        sde_noise=noise(rows, key=6)[:, None],
        executed_steps=TINY.horizon,
        counted_dims=range(3),
    )


def assert_close(ours: SampledChunk, theirs: SampledChunk) -> None:
    torch.testing.assert_close(ours.actions, theirs.actions, rtol=0, atol=5e-6)
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=0, atol=1e-4)


def assert_equal(ours: SampledChunk, theirs: SampledChunk) -> None:
    assert torch.equal(ours.actions, theirs.actions)
    assert torch.equal(ours.log_prob, theirs.log_prob)


@pytest.mark.parametrize("masked", [False, True])
def test_appended_keys_are_joined_keys_bit_for_bit(model: Pi05, masked: bool) -> None:
    prefix = encode(model, observations(masked=masked))
    assert prefix.full != masked
    quick = sample(model, prefix, noise(P))
    model.speed = SpeedSettings(append_in_place=False)
    assert_equal(quick, sample(model, prefix, noise(P)))


def test_appended_keys_under_autocast(model: Pi05) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prefix = encode(model, observations())
        quick = sample(model, prefix, noise(P))
        model.speed = SpeedSettings(append_in_place=False)
        assert_equal(quick, sample(model, prefix, noise(P)))
        shared = sample(model, prefix, noise(P * G))
        copied = sample(model, prefix.repeated(P * G), noise(P * G))
    assert prefix.keys.dtype == torch.bfloat16
    assert float((shared.actions - copied.actions).abs().max()) < 0.02 * float(copied.actions.abs().max())


@pytest.mark.parametrize("masked", [False, True])
def test_trimming_changes_nothing(model: Pi05, masked: bool) -> None:
    inputs = observations(masked=masked)
    inputs = ModelInput(
        images=torch.cat((inputs.images, inputs.images[:, :1]), 1),
        image_mask=torch.cat((inputs.image_mask, torch.zeros(P, 1, dtype=torch.bool)), 1),
        tokens=torch.cat((inputs.tokens, torch.full((P, 5), 7)), 1),
        token_mask=torch.cat((inputs.token_mask, torch.zeros(P, 5, dtype=torch.bool)), 1),
    )
    trimmed = encode(model, inputs)
    model.speed = SpeedSettings(trim=False)
    whole = encode(model, inputs)
    assert whole.mask.shape[1] == trimmed.mask.shape[1] + 4 + 5
    assert not whole.full
    assert trimmed.full != masked
    assert_close(sample(model, trimmed, noise(P)), sample(model, whole, noise(P)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefixes", [1, P])
def test_rows_that_share_a_prefix(model: Pi05, masked: bool, prefixes: int) -> None:
    prefix = encode(model, observations(masked=masked)).rows(torch.arange(prefixes))
    initial = noise(prefixes * G)
    shared = sample(model, prefix, initial)
    copied = sample(model, prefix.repeated(prefixes * G), initial)
    assert_close(shared, copied)
    model.speed = SpeedSettings(share_prefix=False)
    assert_equal(copied, sample(model, prefix, initial))
    order = torch.arange(prefixes).repeat(G)
    if prefixes > 1:
        interleaved = sample(model, prefix.rows(order), initial)
        assert float((interleaved.actions - shared.actions).abs().max()) > 1e-3


def test_log_probs_of_rows_that_share_a_prefix(model: Pi05) -> None:
    prefix, rows = encode(model, observations(masked=True)), P * G
    drawn = sample(model, prefix, noise(rows))
    recomputed = chunk_log_prob(
        model,
        prefix,
        x_t=drawn.x_t,
        x_next=drawn.x_next,
        sde_index=drawn.sde_index,
        denoise_steps=K,
        noise_level=0.5,
        executed_mask=torch.ones(rows, TINY.horizon, dtype=torch.bool),
        counted_dims=range(3),
    )
    torch.testing.assert_close(recomputed.detach(), drawn.log_prob, rtol=0, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("prefixes", [1, P])
def test_attention_in_two_parts(masked: bool, kv_heads: int, prefixes: int) -> None:
    """With scores, and fused, against attention to copied and joined keys."""
    rng, heads, dim, horizon, length = generator(9), 4, 16, 5, 11
    rows = prefixes * G
    query, key, value, past_key, past_value = (
        torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        for shape in [
            (rows, horizon, heads, dim),
            *[(rows, horizon, kv_heads, dim)] * 2,
            *[(prefixes, length, kv_heads, dim)] * 2,
        ]
    )
    mask = torch.arange(length)[None] < torch.arange(length - prefixes + 1, length + 1)[:, None] - 2
    copied_mask = torch.nn.functional.pad(mask, (0, horizon), value=True).repeat_interleave(G, 0)
    copied = [torch.cat((a.repeat_interleave(G, 0), b), 1) for a, b in ((past_key, key), (past_value, value))]
    expected = attend(query, *copied, mask_bias(copied_mask) if masked else None)
    bias = mask_bias(mask) if masked else None
    for function in (attend_shared, attend_fused):
        ours = function(query, past_key, past_value, key, value, bias)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
        other = function(query, past_key, past_value.flip(1), key, value, bias)
        assert float((other - expected).abs().max()) > 0.01


def test_rows_must_be_a_multiple_of_the_prefixes(model: Pi05) -> None:
    prefix = encode(model, observations())
    with pytest.raises(AssertionError):
        sample(model, prefix, noise(P + 1))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_through_a_shared_prefix(model: Pi05, masked: bool) -> None:
    """The loss of P * G rows: gradients of all weights are those of copied prefixes."""

    def gradients(settings: SpeedSettings) -> dict[str, Tensor]:
        model.speed = settings
        model.zero_grad()
        prefix = model.encode_prefix(observations(masked=masked))
        t = torch.linspace(0.1, 1.0, P * G)
        model.velocity(prefix, noise(P * G), t).square().mean().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    shared, copied = gradients(SpeedSettings()), gradients(SpeedSettings(share_prefix=False))
    model.recompute_activations(True)
    again = gradients(SpeedSettings())
    model.recompute_activations(False)
    assert all(torch.equal(again[name], ours) for name, ours in shared.items())
    assert shared.keys() == copied.keys() == dict(model.named_parameters()).keys()
    for name, theirs in copied.items():
        torch.testing.assert_close(shared[name], theirs, rtol=1e-4, atol=1e-6 + 1e-5 * float(theirs.abs().max()))


class Allocations(TorchDispatchMode):
    """Counts the bytes of memory that operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        fresh = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for x in tree_leaves(out)
            if isinstance(x, Tensor)
        }
        self.total += sum(size for place, size in fresh.items() if place not in given)
        return out


def test_memory_of_a_shared_prefix(model: Pi05) -> None:
    """Sixteen members of an observation: copied, their prefixes alone are sixteen times as large; shared, all that a
    denoise step allocates does not grow by a prefix per member."""
    inputs = observations(rows=1, tokens=400)
    prefix, members = encode(model, inputs), 16
    initial = noise(members)[:, :1]

    def allocated(settings: SpeedSettings) -> int:
        model.speed = settings
        with Allocations() as counted, torch.no_grad():
            table = model.modulation_table(1)
            model.denoiser(prefix, initial, table)(initial, table)
        return counted.total

    copies = members * prefix.nbytes
    assert allocated(SpeedSettings(share_prefix=False, append_in_place=False)) > 2 * copies
    assert allocated(SpeedSettings(share_prefix=False)) > 2 * copies
    layout = model.config.vlm
    scores = layout.depth * 4 * members * layout.heads * (prefix.mask.shape[1] + 1)
    assert allocated(SpeedSettings()) < 4 * scores + 2 * prefix.nbytes < 0.7 * copies


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [P, P * G])
def test_recorded_steps(model: Pi05, masked: bool, rows: int) -> None:
    prefix = encode(model, observations(masked=masked))
    plain = sample(model, prefix, noise(rows))
    model.speed = SpeedSettings(cuda_graph=True)
    assert_close(sample(model, prefix, noise(rows)), plain)
    assert len(model._recorded) == 1


def test_a_recording_serves_prefixes_of_similar_length(model: Pi05) -> None:
    """Longer, shorter, masked: each result is that of the plain way, whatever was in the memory before."""
    cases = [
        encode(model, observations(key=key, masked=masked, tokens=tokens))
        for key, masked, tokens in ((3, False, 12), (4, False, 7), (5, True, 10), (3, False, 12))
    ]
    assert {roomy(prefix.mask.shape[1], TINY.horizon) for prefix in cases} == {LENGTH_STEP - TINY.horizon}
    plain = [sample(model, prefix, noise(P)) for prefix in cases]
    model.speed = SpeedSettings(cuda_graph=True)
    for prefix, expected in zip(cases, plain, strict=True):
        assert_close(sample(model, prefix, noise(P)), expected)
    assert len(model._recorded) == 1
    assert float((plain[0].actions - plain[1].actions).abs().max()) > 1e-3


def test_a_broken_prefix_does_not_outlive_its_chunk(model: Pi05) -> None:
    model.speed = SpeedSettings(cuda_graph=True)
    short, long = (encode(model, observations(tokens=tokens)) for tokens in (7, 12))
    expected = sample(model, short, noise(P))
    long.values.fill_(float("nan"))
    assert not torch.isfinite(sample(model, long, noise(P)).actions).any()
    assert_equal(sample(model, short, noise(P)), expected)


def test_results_of_a_recording_are_the_callers_own(model: Pi05) -> None:
    model.speed = SpeedSettings(cuda_graph=True)
    prefix, table = encode(model, observations()), model.modulation_table(K).detach()
    velocity = model.denoiser(prefix, noise(P), table[:1])
    first = velocity(noise(P), table[:1])
    kept = first.clone()
    second = velocity(noise(P, key=8), table[1:2])
    assert torch.equal(first, kept)
    assert not torch.equal(second, kept)


def test_recordings_are_bounded(model: Pi05) -> None:
    model.speed = SpeedSettings(cuda_graph=True, graph_shapes=2, graph_tokens=TINY.horizon * 4)
    prefix = encode(model, observations(rows=5))
    for rows, expected in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        sample(model, prefix.rows(torch.arange(rows)), noise(rows))
        assert len(model._recorded) == expected
    shapes = [key[2] for key in model._recorded._steps]
    assert shapes == [3, 4]


def test_recordings_see_every_change_of_weights() -> None:
    """An optimizer's step in place, also one that torch does not count, and parameters that are replaced."""
    model = make()
    model.speed = SpeedSettings(cuda_graph=True)
    prefix, changed = encode(model, observations()), []
    sample(model, prefix, noise(P))
    parameter = model.action_out.weight

    def replaced() -> None:
        model.action_out.weight = torch.nn.Parameter(parameter.detach() * 1.5)

    for change in (lambda: parameter.data.mul_(1.1), lambda: parameter.detach().mul_(1.1), replaced):
        change()
        quick = sample(model, prefix, noise(P))
        model.speed = SpeedSettings()
        assert_close(quick, sample(model, prefix, noise(P)))
        model.speed = SpeedSettings(cuda_graph=True)
        changed.append(quick.actions)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in pairwise(changed))


def test_a_copied_network_has_no_recordings(model: Pi05) -> None:
    model.speed = SpeedSettings(cuda_graph=True)
    prefix = encode(model, observations())
    expected = sample(model, prefix, noise(P))
    twin = copy.deepcopy(model)
    assert len(twin._recorded) == 0
    assert_equal(sample(twin, prefix, noise(P)), expected)


@pytest.mark.parametrize("name", ["graph_shapes", "graph_tokens"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is 0; it must be at least 1$"):
        SpeedSettings(**{name: 0})


def test_everything_off_is_everything_on(model: Pi05) -> None:
    quick = sample(model, encode(model, observations(masked=True)), noise(P * G))
    model.speed = PLAIN
    assert_close(quick, sample(model, encode(model, observations(masked=True)), noise(P * G)))


class Counted:
    """A network whose tables are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.tables = make(), 0
        original = self.model.modulation

        def counting(t: Tensor) -> Tensor:
            self.tables += 1
            return original(t)

        monkeypatch.setattr(self.model, "modulation", counting)
        self.prefix = encode(self.model, observations())

    def act(self) -> Tensor:
        return sample(self.model, self.prefix, noise(P)).actions

    def fresh(self) -> Tensor:
        """What a network that keeps nothing does with these weights."""
        twin = make()
        twin.load_state_dict(self.model.state_dict())
        return sample(twin, self.prefix, noise(P)).actions


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_one_table_for_a_rollout(counted: Counted) -> None:
    expected = counted.act()
    with counted.model.constant_weights():
        counted.tables = 0
        assert all(torch.equal(counted.act(), expected) for _ in range(20))
        assert counted.tables == 1
        with counted.model.constant_weights():
            counted.act()
        counted.act()
        assert counted.tables == 1
    counted.tables = 0
    counted.act()
    counted.act()
    assert counted.tables == 2


def fused_step(parameter: Tensor) -> None:
    """An optimizer's step that leaves torch's version counter as it is."""
    parameter.grad = torch.ones_like(parameter)
    version = parameter._version
    torch.optim.AdamW([parameter], lr=1e-2, fused=True).step()
    parameter.grad = None
    assert parameter._version == version, "torch counts fused steps by now; good"


UNSEEN: dict[str, Callable[[Tensor], object]] = {
    "through data": lambda parameter: parameter.data.add_(0.01),
    "fused optimizer": fused_step,
}
SEEN: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda parameter: parameter.detach().add_(0.01),
    "another storage": lambda parameter: setattr(parameter, "data", parameter.detach() + 0.01),
}


@pytest.mark.parametrize("part", ["time_in", "time_out", "expert.modulation"])
@pytest.mark.parametrize("way", [*SEEN, *UNSEEN])
def test_a_table_is_never_older_than_the_weights(counted: Counted, part: str, way: str) -> None:
    """Between two scopes, and outside of any, every change is seen."""
    parameter = counted.model.get_submodule(part).bias
    with counted.model.constant_weights():
        before = counted.act()
    (SEEN | UNSEEN)[way](parameter)
    outside = counted.act()
    with counted.model.constant_weights():
        assert torch.equal(counted.act(), outside)
    assert torch.equal(outside, counted.fresh())
    assert float((outside - before).abs().max()) > 1e-4


@pytest.mark.parametrize("way", SEEN)
def test_a_change_that_is_counted_is_seen_at_once(counted: Counted, way: str) -> None:
    with counted.model.constant_weights():
        before = counted.act()
        SEEN[way](counted.model.expert.modulation.bias)
        after = counted.act()
        assert torch.equal(after, counted.fresh())
        assert not torch.equal(after, before)


@pytest.mark.parametrize("way", UNSEEN)
def test_a_broken_promise_is_noticed(counted: Counted, way: str) -> None:
    def break_it() -> None:
        with counted.model.constant_weights():
            counted.act()
            UNSEEN[way](counted.model.expert.modulation.bias)
            counted.act()

    with pytest.raises(AssertionError, match=r"^weights changed while constant_weights was in force"):
        break_it()
    assert torch.equal(counted.act(), counted.fresh())


def test_a_failure_ends_the_promise(counted: Counted) -> None:
    def fail() -> None:
        with counted.model.constant_weights():
            counted.act()
            counted.model.expert.modulation.bias.data.add_(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(counted.act(), counted.fresh())


def test_a_table_with_gradient_is_not_kept(counted: Counted) -> None:
    with counted.model.constant_weights():
        counted.act()
        table = counted.model.modulation_table(K)
        assert table.requires_grad
        assert table is not counted.model.modulation_table(K)
        counted.model.speed = SpeedSettings(keep_modulation=False)
        counted.tables = 0
        counted.act()
        counted.act()
        assert counted.tables == 2
