"""The network's parts without a reference: prefix caches, missing cameras, initialisation, what trains, tokenizer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from z1.commands import tiny_sizes
from z1.errors import CheckpointError, UnknownNameError
from z1.policy import flow
from z1.policy.config import TINY_VOCAB, PolicyConfig
from z1.policy.gemma import attend, mask_bias, rotary, rotate
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.tokenizer import Tokenizer, build_prompt
from z1.policy.trainable import MODES, parameter_groups
from z1.sims.suites import all_tasks, instruction

SMALL = PolicyConfig.tiny(image_size=32, patch=16, width=64, depth=2, vision_width=32, vision_depth=1, expert_width=64)
B = 4


def generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


@pytest.fixture(scope="module")
def model() -> Pi05:
    return Pi05.initialised(SMALL, generator(1)).requires_grad_(False)


def observations(image_mask: Tensor | None = None, token_mask: Tensor | None = None) -> ModelInput:
    rng = generator(2)
    return ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (B, 3, 3, 32, 32), dtype=np.uint8)),
        image_mask=torch.ones(B, 3, dtype=torch.bool) if image_mask is None else image_mask,
        tokens=torch.from_numpy(rng.integers(4, 500, (B, 6))),
        token_mask=torch.ones(B, 6, dtype=torch.bool) if token_mask is None else token_mask,
    )


def noisy_actions() -> tuple[Tensor, Tensor]:
    rng = generator(3)
    x = torch.from_numpy(rng.standard_normal((B, SMALL.horizon, SMALL.action_dim), dtype=np.float32))
    return x, torch.tensor([1.0, 0.7, 0.3, 0.1])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_folded_attention_is_attention(kv_heads: int, masked: bool) -> None:
    rng = generator(4)
    query, key, value = (
        torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        for shape in ((B, 5, 4, 8), (B, 7, kv_heads, 8), (B, 7, kv_heads, 8))
    )
    mask = torch.ones(B, 7, dtype=torch.bool)
    mask[1, 3:] = False
    expected = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.repeat_interleave(4 // kv_heads, 2).transpose(1, 2),
        value.repeat_interleave(4 // kv_heads, 2).transpose(1, 2),
        attn_mask=mask[:, None, None] if masked else None,
    )
    ours = attend(query, key, value, mask_bias(mask) if masked else None)
    torch.testing.assert_close(ours, expected.transpose(1, 2).reshape(B, 5, 32))


def test_rotary_embedding_depends_on_distance_only() -> None:
    rng = generator(5)
    query, key = (torch.from_numpy(rng.standard_normal((1, 1, 1, 16), dtype=np.float32)) for _ in range(2))

    def product(at: int, other: int) -> float:
        turned = [rotate(x, rotary(torch.tensor([[p]]), 16)) for x, p in ((query, at), (key, other))]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 5) == pytest.approx(product(103, 105), abs=1e-4)
    assert abs(product(3, 5) - product(3, 6)) > 1e-3


def test_prefix_rows_and_concat(model: Pi05) -> None:
    token_mask = torch.arange(6)[None] < torch.tensor([6, 4, 5, 6])[:, None]
    whole = model.encode_prefix(observations(token_mask=token_mask))
    assert not whole.full
    rows = whole.rows(torch.tensor([2, 0, 2]))
    assert len(rows) == 3
    assert rows.keys.is_contiguous()
    assert torch.equal(rows.values[2], whole.values[2])
    short = model.encode_prefix(observations(token_mask=token_mask).rows(torch.tensor([1])))
    joined = PrefixCache.concat([short, whole])
    assert short.full
    assert short.mask.shape[1] == whole.mask.shape[1] - 2
    assert len(joined) == B + 1
    assert not joined.full
    assert torch.equal(joined.mask[0], whole.mask[1])
    assert not joined.keys[0, :, -2:].any()
    assert whole.nbytes == whole.keys.nbytes + whole.values.nbytes + whole.mask.nbytes
    assert whole.keys.shape == (B, SMALL.vlm.depth, whole.mask.shape[1], SMALL.vlm.head_dim)


def test_concat_of_full_prefixes_stays_full(model: Pi05) -> None:
    prefix = model.encode_prefix(observations())
    assert PrefixCache.concat([prefix, prefix]).full


def test_model_input_rows_and_concat(model: Pi05) -> None:
    whole = observations()
    parts = [whole.rows(torch.tensor([0])), whole.rows(torch.tensor([1, 2, 3]))]
    joined = ModelInput.concat(parts)
    assert torch.equal(joined.images, whole.images)
    longer = ModelInput.concat(
        [
            whole,
            ModelInput(
                images=whole.images,
                image_mask=whole.image_mask,
                tokens=functional.pad(whole.tokens, (0, 2), value=9),
                token_mask=functional.pad(whole.token_mask, (0, 2), value=True),
            ),
        ]
    )
    assert longer.tokens.shape == (2 * B, 8)
    assert longer.token_mask.sum(1).tolist() == [6] * B + [8] * B


def test_detached_prefix_has_no_gradient() -> None:
    trained = Pi05.initialised(SMALL, generator(1))
    prefix = trained.encode_prefix(observations())
    assert prefix.keys.requires_grad
    assert not prefix.detach().keys.requires_grad
    with torch.no_grad():
        assert not trained.encode_prefix(observations()).keys.requires_grad


@pytest.mark.parametrize("columns", [[True, False, True], [False, False, True]])
def test_a_camera_that_no_row_has_is_dropped(model: Pi05, columns: list[bool]) -> None:
    mask = torch.tensor([columns] * B)
    x, t = noisy_actions()
    dropped = model.encode_prefix(observations(mask))
    assert dropped.full
    assert dropped.mask.shape[1] == 4 * sum(columns) + 6
    mixed = mask.clone()
    mixed[0] = True
    masked = model.encode_prefix(observations(mixed))
    assert masked.mask.shape[1] == 4 * 3 + 6
    first = model.velocity(dropped, x, t)[1:]
    second = model.velocity(masked, x, t)[1:]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    everything = model.velocity(model.encode_prefix(observations()), x, t)[1:]
    assert float((everything - first).abs().max()) > 1e-3


def test_no_camera_at_all(model: Pi05) -> None:
    prefix = model.encode_prefix(observations(torch.zeros(B, 3, dtype=torch.bool)))
    assert prefix.mask.shape[1] == 6


def test_one_time_for_all_rows(model: Pi05) -> None:
    x, _ = noisy_actions()
    prefix = model.encode_prefix(observations())
    one, same = torch.tensor([0.4]), torch.full((B,), 0.4)
    torch.testing.assert_close(model.velocity(prefix, x, one), model.velocity(prefix, x, same), rtol=0, atol=1e-6)


def test_time_must_be_float32(model: Pi05) -> None:
    x, t = noisy_actions()
    with pytest.raises(AssertionError):
        model.velocity(model.encode_prefix(observations()), x, t.double())


def test_initialisation() -> None:
    first, again, other = (Pi05.initialised(SMALL, generator(key)) for key in (1, 1, 2))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.isfinite(a).all(), name
        if name.endswith("qkv.weight"):
            assert not torch.equal(a, c), name
    qkv = first.expert.layers[0].attention.qkv.weight
    assert float(qkv.detach().std()) == pytest.approx(SMALL.expert.width**-0.5, rel=0.05)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_initial_gate(gate: float) -> None:
    """With gates 0 the expert is the identity: what it makes of noise does not depend on the observation."""
    made = Pi05.initialised(replace(SMALL, initial_gate=gate), generator(1)).requires_grad_(False)
    x, t = noisy_actions()
    prefix = made.encode_prefix(observations())
    difference = made.velocity(prefix, x, t) - made.velocity(prefix.rows(torch.arange(B).roll(1)), x, t)
    assert bool(difference.any()) == (gate > 0)


def test_loss_falls() -> None:
    """A few steps on one batch; with a learning rate of 0 it stays."""

    def losses(learning_rate: float) -> list[float]:
        trained = Pi05.initialised(SMALL, generator(1))
        groups = parameter_groups(trained, "joint", learning_rate=learning_rate, vlm_learning_rate=learning_rate)
        optimizer = torch.optim.AdamW(groups)
        actions, t = noisy_actions()
        noise = torch.from_numpy(generator(7).standard_normal(tuple(actions.shape), dtype=np.float32))
        history = []
        for _ in range(30):
            velocity = trained.velocity(trained.encode_prefix(observations()), flow.interpolate(actions, noise, t), t)
            loss = (velocity - flow.target(actions, noise)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    falling = losses(3e-3)
    assert falling[-1] < 0.2 * falling[0]
    constant = losses(0.0)
    assert constant[-1] == constant[0]


def test_what_trains() -> None:
    made = Pi05.initialised(SMALL, generator(1))
    counts = {}
    for mode in MODES:
        groups = parameter_groups(made, mode, learning_rate=1e-3, vlm_learning_rate=1e-4)
        trained = {id(p) for group in groups for p in group["params"]}
        assert trained == {id(p) for p in made.parameters() if p.requires_grad}
        assert [(group["name"], group["lr"]) for group in groups] == [("expert", 1e-3), ("vlm", 1e-4)][: len(groups)]
        counts[mode] = {name.split(".")[0] for name, p in made.named_parameters() if p.requires_grad}
    expert = {"expert", "action_in", "action_out", "time_in", "time_out"}
    assert counts["expert"] == expert
    assert counts["joint"] == expert | {"vision", "projector", "vlm"}
    assert counts["joint_frozen_vision"] == expert | {"projector", "vlm"}
    with pytest.raises(UnknownNameError, match=r"^unknown training mode 'expret'; did you mean 'expert'\?$"):
        parameter_groups(made, "expret", learning_rate=1e-3, vlm_learning_rate=1e-4)


def test_shipped_tokenizer_reads_every_instruction() -> None:
    tokenizer = Tokenizer.tiny()
    assert tokenizer.size == TINY_VOCAB
    state = np.linspace(-1.2, 1.2, 4)
    tasks = all_tasks("metaworld")
    prompts = [build_prompt(instruction(task), state, "state") for task in tasks]
    lengths = [len(ids) for ids in tokenizer.encode(prompts)]
    assert max(lengths) <= PolicyConfig.tiny().max_tokens // 2
    tokens, mask = tokenizer.batch(prompts, PolicyConfig.tiny().max_tokens)
    assert tokens.shape[1] == max(lengths)
    assert mask.sum(1).tolist() == lengths
    assert (tokens[:, 0] == 2).all()
    assert len({tuple(row) for row in tokens.tolist()}) == len({instruction(task) for task in tasks})


def test_a_tiny_policy_for_many_dims_reads_the_longest_instructions() -> None:
    sizes = tiny_sizes(64, state_dim=16, action_dim=12)
    assert (sizes.action_dim, sizes.max_tokens) == (12, 192)
    assert tiny_sizes(64, state_dim=4, action_dim=4) == PolicyConfig.tiny(patch=16)
    state = np.linspace(-1, 1, 16)
    tasks = all_tasks("robocasa")
    prompts = [build_prompt(instruction(task), state, "state") for task in tasks]
    assert PolicyConfig.tiny().max_tokens < max(map(len, Tokenizer.tiny().encode(prompts))) < sizes.max_tokens


def test_shipped_tokenizer_splits_digits_and_falls_back_to_bytes() -> None:
    tokenizer = Tokenizer.tiny()
    one, three = tokenizer.encode(["1", "128"])
    assert len(three) == len(one) + 2
    assert 3 not in tokenizer.encode(["ß 漢 \t"])[0]


def test_damaged_tokenizer() -> None:
    with pytest.raises(CheckpointError, match=r"^here is not a sentencepiece model"):
        Tokenizer(b"nonsense", "here")
