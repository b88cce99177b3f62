"""Policies as folders, and the way from observations to env actions."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from z1.data.stats import compute_stats
from z1.errors import CheckpointError, ConfigError, RunFolderError
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.policy import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, Policy, read_config
from z1.types import Observations

SMALL = PolicyConfig.tiny(image_size=32, patch=16, width=64, depth=2, vision_width=32, vision_depth=1, expert_width=64)
RNG = np.random.Generator(np.random.Philox(key=9))
STATE, ACTION = RNG.normal(size=(200, 5)), RNG.uniform(-1.5, 0.5, (200, 3))
PROCESSOR = ProcessorConfig.of_dataset(
    cameras=("front", "wrist"), state_stats=compute_stats(STATE), action_stats=compute_stats(ACTION)
)


@pytest.fixture
def policy() -> Policy:
    return Policy.create(SMALL, PROCESSOR, seed=4)


def observations(count: int = 3, size: int = 32, cameras: int = 2, state_dim: int = 5) -> Observations:
    rng = np.random.Generator(np.random.Philox(key=10))
    return Observations(
        images=rng.integers(0, 256, (count, cameras, size, size, 3), dtype=np.uint8),
        state=rng.normal(size=(count, state_dim)).astype(np.float32),
        instructions=("open the window", "push the block to the goal", "reach")[:count],
    )


def saved(policy: Policy, tmp_path: Path) -> Path:
    policy.save(tmp_path / "policy")
    return tmp_path / "policy"


def test_round_trip(policy: Policy, tmp_path: Path) -> None:
    folder = saved(policy, tmp_path)
    assert sorted(os.listdir(folder)) == sorted([MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE])
    again = Policy.load(folder)
    assert again.config == policy.config == read_config(folder)
    assert again.processor == policy.processor
    assert again.tokenizer.serialised == policy.tokenizer.serialised
    for (name, ours), theirs in zip(policy.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(parameter.requires_grad for parameter in again.model.parameters())
    first, second = (p.model.encode_prefix(p.prepare(observations())) for p in (policy, again))
    assert torch.equal(first.keys, second.keys)


def test_seed_decides_the_weights(policy: Policy) -> None:
    same, other = (Policy.create(SMALL, PROCESSOR, seed=seed) for seed in (4, 5))
    name = "vlm.embedding"
    assert torch.equal(policy.model.state_dict()[name], same.model.state_dict()[name])
    assert not torch.equal(policy.model.state_dict()[name], other.model.state_dict()[name])


def test_weights_are_loaded_in_place(policy: Policy, tmp_path: Path) -> None:
    other = Policy.create(SMALL, PROCESSOR, seed=5)
    before = [parameter.data_ptr() for parameter in other.model.parameters()]
    other.load_weights(saved(policy, tmp_path))
    assert [parameter.data_ptr() for parameter in other.model.parameters()] == before
    for ours, theirs in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_existing_folder_is_kept_unless_replaced(policy: Policy, tmp_path: Path) -> None:
    folder = saved(policy, tmp_path)
    with pytest.raises(RunFolderError, match="exists already"):
        policy.save(folder)
    policy.save(folder, replace=True)
    assert os.listdir(tmp_path) == ["policy"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    with pytest.raises(CheckpointError) as caught:
        Policy.load(folder)
    assert str(caught.value) == (
        f"policy folder {folder} does not exist; give a folder that holds model.safetensors and config.json"
    )


@pytest.mark.parametrize("name", [MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize("damage", ["missing", "damaged", "empty"])
def test_missing_and_damaged_files(policy: Policy, tmp_path: Path, name: str, damage: str) -> None:
    file = saved(policy, tmp_path) / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\x80nonsense" if damage == "damaged" else b"")
    with pytest.raises(CheckpointError, match=str(file)):
        Policy.load(tmp_path / "policy")


def test_a_truncated_weight_file_is_damaged(policy: Policy, tmp_path: Path) -> None:
    file = saved(policy, tmp_path) / MODEL_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is damaged: .*; copy or save it again"):
        Policy.load(tmp_path / "policy")


def test_another_format_is_refused(policy: Policy, tmp_path: Path) -> None:
    file = saved(policy, tmp_path) / CONFIG_FILE
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "format": "z1.policy/2"}))
    with pytest.raises(CheckpointError) as caught:
        Policy.load(file.parent)
    assert str(caught.value) == (
        f"{file} has format 'z1.policy/2', expected 'z1.policy/1'; it is no policy of z1, or of another version"
    )


def test_all_wrong_tensors_are_one_error(policy: Policy, tmp_path: Path) -> None:
    file = saved(policy, tmp_path) / MODEL_FILE
    tensors = load_file(file)
    del tensors["action_in.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["time_in.bias"] = torch.zeros(3)
    save_file(tensors, file)
    for load in (Policy.load, policy.load_weights):
        with pytest.raises(CheckpointError) as caught:
            load(file.parent)
        assert str(caught.value) == (
            f"{file} does not fit the network: 1 tensors missing (action_in.bias); 1 tensors unknown (extra); "
            "1 tensors of another shape (time_in.bias is (3,), expected (64,)). "
            "Use the config.json that belongs to these weights."
        )


def test_weights_of_another_size_are_refused(policy: Policy, tmp_path: Path) -> None:
    other = Policy.create(replace(SMALL, action_dim=12), PROCESSOR, seed=4)
    before = other.model.action_in.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r": 3 tensors of another shape"):
        other.load_weights(saved(policy, tmp_path))
    assert torch.equal(other.model.action_in.weight, before)


def test_parts_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"^processor.action_dim is 3, but the network has 2 action dims"):
        Policy.create(replace(SMALL, action_dim=2), PROCESSOR, seed=0)
    with pytest.raises(ConfigError, match=r"^the tokenizer has 512 pieces, but the network embeds 300"):
        Policy.create(replace(SMALL, vlm=replace(SMALL.vlm, vocab=300)), PROCESSOR, seed=0)


def test_prepare(policy: Policy) -> None:
    seen = observations()
    inputs = policy.prepare(seen)
    assert inputs.images.dtype == torch.uint8
    assert torch.equal(inputs.images[1, 1], torch.from_numpy(seen.images[1, 1]).permute(2, 0, 1))
    assert inputs.image_mask.all()
    assert inputs.tokens.shape == inputs.token_mask.shape
    assert len(inputs) == 3


def test_prepare_takes_read_only_images(policy: Policy) -> None:
    seen = observations()
    seen.images.flags.writeable = False
    assert torch.equal(policy.prepare(seen).images, policy.prepare(observations()).images)


def test_the_state_is_in_the_prompt(policy: Policy) -> None:
    seen = observations()
    moved = Observations(images=seen.images, state=seen.state + 0.5, instructions=seen.instructions)
    assert not torch.equal(policy.prepare(seen).tokens[0], policy.prepare(moved).tokens[0])
    blind = Policy(policy.model, replace(PROCESSOR, prompt="no_state"), policy.tokenizer)
    assert torch.equal(blind.prepare(seen).tokens, blind.prepare(moved).tokens)


@pytest.mark.parametrize("mode", ["pil_antialias", "torch_bilinear"])
def test_images_of_another_size_are_resized(policy: Policy, mode: str) -> None:
    resizing = Policy(policy.model, replace(PROCESSOR, resize=mode), policy.tokenizer)
    inputs = resizing.prepare(observations(size=48))
    assert inputs.images.shape == (3, 2, 3, 32, 32)
    assert inputs.images.dtype == (torch.uint8 if mode == "pil_antialias" else torch.float32)
    resizing.model.encode_prefix(inputs)


def test_wrong_observations_are_refused(policy: Policy) -> None:
    with pytest.raises(ConfigError) as caught:
        policy.prepare(observations(cameras=1))
    assert str(caught.value) == (
        "the observations have 1 cameras, the policy looks through 2 (front, wrist); render these"
    )
    with pytest.raises(ConfigError) as caught:
        policy.prepare(observations(state_dim=4))
    assert str(caught.value) == (
        "the observations have 4 state dims, the policy was made for 5; "
        "choose a policy that was trained on this simulator"
    )


def test_actions_there_and_back(policy: Policy) -> None:
    actions = ACTION[:24].reshape(3, 8, 3).astype(np.float32)
    normal = policy.normalize_actions(actions)
    assert normal.shape == (3, 8, SMALL.action_dim)
    assert normal.dtype == torch.float32
    assert not normal[..., 3:].any()
    back = policy.env_actions(normal)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, actions, atol=1e-5)


def test_actions_are_clipped_to_their_bounds(policy: Policy) -> None:
    wild = torch.full((1, 8, SMALL.action_dim), 50.0)
    assert (policy.env_actions(wild) == 1.0).all()
    low = np.array(PROCESSOR.action_low, np.float32)
    assert (policy.env_actions(-wild) == low).all()
    free = Policy(policy.model, replace(PROCESSOR, action_low=None, action_high=None), policy.tokenizer)
    assert (free.env_actions(wild) > 10.0).all()


def test_moving_returns_the_policy(policy: Policy) -> None:
    assert policy.to("cpu") is policy
    assert policy.device == torch.device("cpu")
    assert policy.parameter_count == sum(p.numel() for p in policy.model.parameters())
