"""The network against LeRobot, openpi and JAX: prefix, velocity, samples, missing cameras; and that faults are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.sampler import sample_chunk

FP32 = 2e-5
JAX = 5e-4
BF16 = 0.05


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach() - theirs).abs().max())


def cache_error(prefix: PrefixCache, reference: dict[str, Tensor], valid: Tensor, flavour: str = "") -> float:
    """Largest difference of keys and values over the tokens that count."""
    worst = 0.0
    for layer in (0, 1, 2):
        for name, ours in (("key", prefix.keys), ("value", prefix.values)):
            theirs = reference.get(f"{flavour}prefix.cache.{layer}.{name}")
            if theirs is not None:
                worst = max(worst, error(ours[:, layer][valid], theirs[:, 0][valid]))
    return worst


@torch.no_grad()
def velocity(model: Pi05, prefix: PrefixCache, reference: dict[str, Tensor], case: str) -> Tensor:
    return model.velocity(prefix, reference[f"denoise.{case}.x_t"], reference[f"denoise.{case}.time"])


@torch.no_grad()
def velocity_error(model: Pi05, inputs: ModelInput, reference: dict[str, Tensor]) -> float:
    prefix = model.encode_prefix(inputs)
    return max(
        error(velocity(model, prefix, reference, case), reference[f"denoise.{case}.v_t"]) for case in ("t1", "tmix")
    )


@torch.no_grad()
def euler(model: Pi05, prefix: PrefixCache, noise: Tensor, times: Tensor) -> Tensor:
    """Euler steps over a reference's own time grid, ``[N, B]``."""
    x = noise
    for t in times:
        x = x - model.velocity(prefix, x, t) / len(times)
    return x


def test_prefix_keys_and_values(prefix: PrefixCache, lerobot: dict[str, Tensor]) -> None:
    valid = lerobot["prefix.pad_mask"]
    assert torch.equal(prefix.mask, valid)
    assert not prefix.full
    assert cache_error(prefix, lerobot, valid) < FP32


@pytest.mark.parametrize("case", ["t1", "tmix"])
def test_velocity(model: Pi05, prefix: PrefixCache, lerobot: dict[str, Tensor], case: str) -> None:
    assert error(velocity(model, prefix, lerobot, case), lerobot[f"denoise.{case}.v_t"]) < FP32


@pytest.mark.parametrize("steps", [5, 10])
def test_samples_over_the_references_time_grids(
    model: Pi05, prefix: PrefixCache, raw: dict[str, Tensor], lerobot: dict[str, Tensor], fixtures: Path, steps: int
) -> None:
    for reference in (lerobot, load_file(fixtures / "outputs_openpi_fp32_sampler.safetensors")):
        ours = euler(model, prefix, raw["noise"], reference[f"sample.{steps}.t"])
        assert error(ours, reference[f"sample.{steps}.actions"]) < FP32


@pytest.mark.parametrize("steps", [5, 10])
def test_own_sampler_has_the_grid_of_lerobot(
    model: Pi05, prefix: PrefixCache, raw: dict[str, Tensor], lerobot: dict[str, Tensor], steps: int
) -> None:
    sample = sample_chunk(
        model,
        prefix,
        initial_noise=raw["noise"],
        denoise_steps=steps,
        noise_level=0.0,
        sde_index=None,
        sde_noise=None,
        executed_steps=6,
        counted_dims=range(5),
    )
    assert error(sample.actions, lerobot[f"sample.{steps}.actions"]) < FP32


def test_jax(model: Pi05, prefix: PrefixCache, lerobot: dict[str, Tensor], fixtures: Path) -> None:
    jax = load_file(fixtures / "outputs_jax_fp32.safetensors")
    assert cache_error(prefix, jax, lerobot["prefix.pad_mask"]) < FP32
    for case in ("t1", "tmix"):
        assert error(velocity(model, prefix, lerobot, case), jax[f"denoise.{case}.v_t"]) < JAX


@pytest.mark.parametrize("flavour", ["lerobot", "openpi_pt", "jax_infer", "jax_train"])
def test_bf16_flavours_surround_float32(
    model: Pi05, prefix: PrefixCache, lerobot: dict[str, Tensor], fixtures: Path, flavour: str
) -> None:
    outputs = load_file(fixtures / "outputs_bf16_flavours.safetensors")
    valid = lerobot["prefix.pad_mask"]
    assert 1e-3 < cache_error(prefix, outputs, valid, f"{flavour}.") < BF16 * float(prefix.keys[:, 0].abs().max())
    for case in ("t1", "tmix"):
        theirs = outputs[f"{flavour}.denoise.{case}.v_t"]
        assert error(velocity(model, prefix, lerobot, case), theirs) < BF16 * float(theirs.abs().max())


def test_own_bf16(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor]) -> None:
    largest = float(lerobot["denoise.tmix.v_t"].abs().max())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = velocity_error(model, inputs, lerobot)
    assert 1e-4 < mixed < BF16 * largest
    for part in (model.vision, model.projector, model.vlm):
        part.to(torch.bfloat16)
    prefix = model.encode_prefix(inputs)
    assert prefix.keys.dtype == torch.bfloat16
    assert 1e-4 < velocity_error(model, inputs, lerobot) < BF16 * largest


def test_uint8_images_are_the_same(model: Pi05, inputs: ModelInput, prefix: PrefixCache) -> None:
    eight_bit = ((inputs.images + 1.0) / 2.0 * 255.0).round().to(torch.uint8)
    exact = ModelInput(
        images=eight_bit.float() / 255.0 * 2.0 - 1.0,
        image_mask=inputs.image_mask,
        tokens=inputs.tokens,
        token_mask=inputs.token_mask,
    )
    same = ModelInput(
        images=eight_bit, image_mask=inputs.image_mask, tokens=inputs.tokens, token_mask=inputs.token_mask
    )
    with torch.no_grad():
        assert torch.equal(model.encode_prefix(same).keys, model.encode_prefix(exact).keys)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_missing_cameras_and_padding_are_left_out(
    model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor], row: int
) -> None:
    alone = inputs.rows(torch.tensor([row]))
    with torch.no_grad():
        prefix = model.encode_prefix(alone)
        assert prefix.full
        assert prefix.mask.shape[1] == int(lerobot["prefix.pad_mask"][row].sum())
        for case in ("t1", "tmix"):
            ours = model.velocity(
                prefix,
                lerobot[f"denoise.{case}.x_t"][row : row + 1],
                lerobot[f"denoise.{case}.time"][row : row + 1],
            )
            assert error(ours, lerobot[f"denoise.{case}.v_t"][row : row + 1]) < FP32


def test_masked_images_do_not_matter(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor]) -> None:
    """What lies in the place of a missing camera or of padding is never read; a camera that exists is."""
    where = inputs.image_mask[:, :, None, None, None]
    noise = torch.linspace(-1.0, 1.0, inputs.images.numel()).view_as(inputs.images)
    tokens = torch.where(inputs.token_mask, inputs.tokens, 7)
    disturbed = ModelInput(
        images=torch.where(where, inputs.images, noise),
        image_mask=inputs.image_mask,
        tokens=tokens,
        token_mask=inputs.token_mask,
    )
    assert velocity_error(model, disturbed, lerobot) < FP32
    everything = ModelInput(
        images=disturbed.images,
        image_mask=torch.ones_like(inputs.image_mask),
        tokens=tokens,
        token_mask=inputs.token_mask,
    )
    assert velocity_error(model, everything, lerobot) > 0.1


def test_order_of_the_cameras_matters(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor]) -> None:
    swapped = ModelInput(
        images=inputs.images[:, [1, 0, 2]],
        image_mask=inputs.image_mask[:, [1, 0, 2]],
        tokens=inputs.tokens,
        token_mask=inputs.token_mask,
    )
    assert velocity_error(model, swapped, lerobot) > 0.1


WEIGHTS = [
    "vision.layers.0.qkv.weight",
    "vision.position",
    "projector.weight",
    "vlm.layers.1.mlp.gate_up.weight",
    "vlm.last.kv.weight",
    "expert.modulation.weight",
    "expert.layers.2.mlp.down.weight",
    "time_in.weight",
    "action_out.weight",
]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_wrong_weight_is_seen(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor], name: str) -> None:
    parameter = dict(model.named_parameters())[name]
    with torch.no_grad():
        parameter.view(-1)[parameter.numel() // 2] += 0.01
    assert velocity_error(model, inputs, lerobot) > FP32


def test_an_unscaled_text_embedding_is_seen(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor]) -> None:
    with torch.no_grad():
        model.vlm.embedding /= model.config.vlm.width**0.5
    assert velocity_error(model, inputs, lerobot) > 0.1


def test_a_rounded_time_is_seen(model: Pi05, prefix: PrefixCache, lerobot: dict[str, Tensor]) -> None:
    with torch.no_grad():
        rounded = lerobot["denoise.tmix.time"].to(torch.bfloat16).float()
        ours = model.velocity(prefix, lerobot["denoise.tmix.x_t"], rounded)
    assert error(ours, lerobot["denoise.tmix.v_t"]) > 0.1


def test_swapped_scale_and_shift_are_seen(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor]) -> None:
    for parameter in (model.expert.modulation.weight, model.expert.modulation.bias):
        parts = parameter.data.view(model.expert.norms, 3, -1)
        parts.copy_(parts[:, [1, 0, 2]].clone())
    assert velocity_error(model, inputs, lerobot) > 0.1
