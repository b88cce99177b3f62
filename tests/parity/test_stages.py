"""Every stage of the network against LeRobot, openpi and JAX, so that a fault is found where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from z1.policy import flow
from z1.policy.config import PolicyConfig
from z1.policy.images import letterbox
from z1.policy.past import suffix_table
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache, embed_time
from z1.policy.sampler import sample_chunk
from z1.policy.speed import SpeedSettings
from z1.policy.trainable import parameter_groups
from z1.policy.weights import load_foreign, to_foreign, unused_foreign_names

FP32, JAX, BF16 = 2e-5, 5e-4, 0.05
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FLAVOURS = ("lerobot", "openpi_pt", "jax_infer", "jax_train")


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach().float() - theirs).abs().max())


@pytest.fixture(scope="module")
def jax(fixtures: Path) -> dict[str, Tensor]:
    return load_file(fixtures / "outputs_jax_fp32.safetensors")


@pytest.fixture(scope="module")
def openpi(fixtures: Path) -> dict[str, Tensor]:
    return load_file(fixtures / "outputs_openpi_fp32_sampler.safetensors")


def watched(modules: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, Tensor]:
    """The first argument of each module during a run without gradient."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, arguments, name=name: seen.__setitem__(name, arguments[0].clone()))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen


def test_image_encoder(model: Pi05, raw: dict[str, Tensor], lerobot: dict[str, Tensor]) -> None:
    for camera in CAMERAS:
        stages = {f"vision_layer{i}_in": layer for i, layer in enumerate(model.vision.layers)}
        stages["vision_post_ln_in"] = model.vision.norm
        seen = watched(stages, lambda camera=camera: model.vision(raw[f"image.{camera}"]))
        assert len(seen) == 3
        for name, ours in seen.items():
            assert error(ours, lerobot[f"vision.{camera}.{name}"]) < FP32, (camera, name)


def test_vlm(model: Pi05, inputs: ModelInput, lerobot: dict[str, Tensor], jax: dict[str, Tensor]) -> None:
    """Embeddings and the stream between the layers, where tokens count. Of the last layer only the input is there."""
    valid = lerobot["prefix.pad_mask"]
    stages: dict[str, nn.Module] = {"layer2_in": model.vlm.last}
    for i, layer in enumerate(model.vlm.layers):
        stages |= {f"layer{i}_in": layer, f"layer{i}_mid": layer.norm2}
    seen = watched(stages, lambda: model.encode_prefix(inputs))
    assert len(seen) == 5
    for name, ours in seen.items():
        assert error(ours[valid], lerobot[f"prefix.prefix_{name}"][valid]) < FP32, name
    for reference in (lerobot, jax):
        assert error(seen["layer0_in"][valid], reference["prefix.embs"][valid]) < FP32


@pytest.mark.parametrize("case", ["t1", "tmix"])
def test_expert(
    model: Pi05, prefix: PrefixCache, lerobot: dict[str, Tensor], jax: dict[str, Tensor], case: str
) -> None:
    stages: dict[str, nn.Module] = {"adarms_cond": model.expert.modulation}
    for i, layer in enumerate(model.expert.layers):
        stages |= {f"attention{i}": layer.attention.out, f"mlp{i}": layer.mlp.gate_up}
    x_t, time = lerobot[f"denoise.{case}.x_t"], lerobot[f"denoise.{case}.time"]
    seen = watched(stages, lambda: model.velocity(prefix, x_t, time))
    assert error(seen["adarms_cond"], lerobot[f"denoise.{case}.adarms_cond"]) < FP32
    assert error(seen["adarms_cond"], jax[f"denoise.{case}.adarms_cond"]) < JAX
    embedded = model.action_in(x_t)
    assert error(embedded, lerobot[f"denoise.{case}.suffix_embs"]) < FP32
    modulation = model.modulation(time).view(3, -1, 3, 1, embedded.shape[-1])
    x = embedded
    for i, layer in enumerate(model.expert.layers):
        assert error(x, lerobot[f"denoise.{case}.suffix_layer{i}_in"]) < FP32, i
        x = x + layer.attention.out(seen[f"attention{i}"]) * modulation[:, 2 * i, 2]
        assert error(x, lerobot[f"denoise.{case}.suffix_layer{i}_mid"]) < FP32, i
        gate, up = layer.mlp.gate_up(seen[f"mlp{i}"]).chunk(2, dim=-1)
        branch = layer.mlp.down(nn.functional.gelu(gate, approximate="tanh") * up)
        x = x + branch * modulation[:, 2 * i + 1, 2]
    assert error(x, lerobot[f"denoise.{case}.suffix_final_norm_in"]) < FP32


def test_positions(prefix: PrefixCache, lerobot: dict[str, Tensor], jax: dict[str, Tensor]) -> None:
    """Tokens that do not count take no position; action tokens follow those that do."""
    positions = prefix.mask.cumsum(1) - 1
    for reference in (lerobot, jax):
        assert torch.equal(prefix.mask, reference["prefix.pad_mask"])
        assert torch.equal(positions[prefix.mask], reference["prefix.position_ids"][prefix.mask].long())
    cos, _ = suffix_table(prefix.mask, 64, 6, 16, torch.device("cpu"))
    expected, _ = suffix_table(None, 0, 70, 16, torch.device("cpu"))
    for row, count in enumerate(prefix.mask.sum(1).tolist()):
        torch.testing.assert_close(cos[row], expected[0, count : count + 6], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 10])
def test_every_denoise_step(
    model: Pi05,
    prefix: PrefixCache,
    raw: dict[str, Tensor],
    lerobot: dict[str, Tensor],
    openpi: dict[str, Tensor],
    steps: int,
) -> None:
    """Velocity at every state that the references' samplers passed through, and the states of our own Euler steps."""
    for reference in (lerobot, openpi):
        x = raw["noise"]
        for k, t in enumerate(reference[f"sample.{steps}.t"]):
            theirs = reference[f"sample.{steps}.x"]
            assert error(x, theirs[k]) < FP32, k
            with torch.no_grad():
                assert error(model.velocity(prefix, theirs[k], t), reference[f"sample.{steps}.v"][k]) < FP32, k
                x = x - model.velocity(prefix, x, t) / steps
        assert error(x, reference[f"sample.{steps}.x"][-1]) < FP32


WAYS = {
    "as usual": SpeedSettings(),
    "plain": SpeedSettings(trim=False, keep_modulation=False, append_in_place=False, share_prefix=False),
    "recorded": SpeedSettings(cuda_graph=True),
}


def sampled(model: Pi05, prefix: PrefixCache, noise: Tensor, steps: int) -> Tensor:
    return sample_chunk(
        model,
        prefix,
        initial_noise=noise,
        denoise_steps=steps,
        noise_level=0.0,
        sde_index=None,
        sde_noise=None,
        executed_steps=6,
        counted_dims=range(5),
    ).actions


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sampling(
    model: Pi05,
    inputs: ModelInput,
    raw: dict[str, Tensor],
    lerobot: dict[str, Tensor],
    jax: dict[str, Tensor],
    way: str,
) -> None:
    """The sampler with its settings for speed, also where rows share a prefix: LeRobot's and JAX's samples."""
    model.speed = WAYS[way]
    with torch.no_grad(), model.constant_weights():
        for steps in (5, 10):
            ours = sampled(model, model.encode_prefix(inputs), raw["noise"], steps)
            assert error(ours, lerobot[f"sample.{steps}.actions"]) < FP32
            assert error(ours, jax[f"sample.{steps}.actions"]) < JAX
        for row in range(3):
            alone = model.encode_prefix(inputs.rows(torch.tensor([row])))
            members = torch.cat((raw["noise"][row : row + 1], raw["noise"].flip(0)))
            shared = sampled(model, alone, members, 10)
            assert error(shared[:1], lerobot["sample.10.actions"][row : row + 1]) < FP32


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_bf16_flavours_surround_samples_and_loss(
    model: Pi05, inputs: ModelInput, raw: dict[str, Tensor], fixtures: Path, flavour: str
) -> None:
    """Ours in float32 and in bfloat16 against theirs in bfloat16: within five percent of the largest value."""
    outputs = load_file(fixtures / "outputs_bf16_flavours.safetensors")
    half = load_foreign(model.config, fixtures / "tiny_model_openpi.safetensors", dtype=torch.bfloat16)
    for network in (model, half):
        with torch.no_grad():
            prefix = network.encode_prefix(inputs)
            for steps in (5, 10):
                theirs = outputs[f"{flavour}.sample.{steps}.actions"]
                assert error(sampled(network, prefix, raw["noise"], steps), theirs) < BF16 * float(theirs.abs().max())
            x_t = flow.interpolate(raw["actions"], raw["noise"], raw["time"])
            loss = (network.velocity(prefix, x_t, raw["time"]) - flow.target(raw["actions"], raw["noise"])).square()
        theirs = outputs[f"{flavour}.train.loss"]
        assert 1e-5 < error(loss, theirs) < BF16 * float(theirs.abs().max())
        theirs = outputs[f"{flavour}.prefix.cache.2.value"][:, 0]
        ours = prefix.values[:, 2][prefix.mask]
        assert error(ours, theirs[prefix.mask]) < BF16 * float(theirs.abs().max())


@pytest.mark.parametrize("mode", ["expert", "joint", "joint_frozen_vision"])
def test_gradients_of_every_mode(
    model: Pi05, config: PolicyConfig, inputs: ModelInput, raw: dict[str, Tensor], fixtures: Path, mode: str
) -> None:
    """What a mode trains has the references' gradient, whatever is frozen; the rest has none."""
    parameter_groups(model, mode, learning_rate=1e-3, vlm_learning_rate=1e-3)
    with torch.set_grad_enabled(mode != "expert"):
        prefix = model.encode_prefix(inputs)
    x_t = flow.interpolate(raw["actions"], raw["noise"], raw["time"])
    velocity = model.velocity(prefix, x_t, raw["time"])
    (velocity - flow.target(raw["actions"], raw["noise"])).square().mean().backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own.keys() == trained.keys()
    theirs = load_file(fixtures / "grads_fp32.safetensors")
    for name, ours in to_foreign(config, own).items():
        assert name not in unused_foreign_names(config)
        largest = max(float(theirs[f"grad.{name}"].abs().max()), 0.1)
        assert error(ours, theirs[f"grad.{name}"]) < FP32 * largest, name


def test_time_features_and_grids(fixtures: Path) -> None:
    times = load_file(fixtures / "time_embedding.safetensors")
    ours = embed_time(times["time"], 1024)
    assert error(ours[:, ::8].double(), times["sincos_1024_fp64"]) < 1e-7
    assert 1e-5 < error(ours, times["sincos_1024_jax"]) < 2e-4, "JAX computes them in float32"
    for steps in (3, 4, 5, 10):
        grid = flow.time_grid(steps)[:-1]
        assert error(grid, times[f"sampler_time_lerobot_{steps}"]) < 1e-7
        assert error(grid, times[f"sampler_time_openpi_{steps}"]) < 2e-7, "openpi adds up in float32"


@pytest.mark.parametrize("size", [32, 56])
@pytest.mark.parametrize("source", ["40x64", "64x24"])
def test_letterbox_against_all_of_openpis(fixtures: Path, source: str, size: int) -> None:
    """Its torch path does not antialias, as LeRobot's; its JAX path does, as Pillow. Ours stand where they should."""
    image = load_file(fixtures / "resize_lerobot.safetensors")[f"src_u8_{source}"].permute(0, 3, 1, 2)
    openpi = load_file(fixtures / "resize_openpi.safetensors")
    floats = letterbox(image, size, "torch_bilinear").permute(0, 2, 3, 1)
    eight_bit = letterbox(image, size, "pil_antialias").permute(0, 2, 3, 1).float()
    assert error(floats, openpi[f"openpi_torch_float_{source}_to_{size}"]) < 1e-6
    rounded = openpi[f"openpi_torch_u8_{source}_to_{size}"].float()
    assert error((floats + 1.0) * 127.5, rounded) < 1.001, "it rounds"
    antialiased = openpi[f"openpi_jax_float_{source}_to_{size}"]
    assert error(eight_bit / 127.5 - 1.0, antialiased) < 2.1 / 127.5
    assert error(floats, antialiased) > 0.02
