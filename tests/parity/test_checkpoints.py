"""Whole checkpoints of the reference programs, from their own files to actions: LeRobot's directory and openpi's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from z1.errors import CheckpointError
from z1.policy import CheckpointOverrides, load_policy, save_policy
from z1.policy.pi05 import ModelInput
from z1.policy.policy import Policy
from z1.policy.tokenizer import build_prompt
from z1.types import Observations

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
OVERRIDES = CheckpointOverrides(vision_heads=4, allow_constant_dims=True, prompt="state")
OPENPI = replace(
    OVERRIDES,
    cameras=CAMERAS,
    horizon=6,
    max_tokens=16,
    state_dim=5,
    action_dim=5,
    normalization="quantile_openpi",
    resize="pil_antialias",
)
"""The tiny network has another number of vision heads than pi0.5, and its statistics have constant dims."""


PIECES = 512
"""Of the synthetic tokenizer. The network embeds 320, so its files get rows that no fixture reads."""


def copy_weights(source: Path, target: Path) -> None:
    with safe_open(source, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            tensors[name] = functional.pad(tensor, (0, 0, 0, PIECES - len(tensor)))
    save_file(tensors, target, metadata=metadata)


@pytest.fixture
def lerobot_folder(fixtures: Path, tmp_path: Path) -> Path:
    """The files as LeRobot writes them; only the tokenizer's folder is ours."""
    folder = tmp_path / "lerobot"
    shutil.copytree(fixtures / "lerobot_processors", folder)
    shutil.copy(fixtures / "lerobot_config_tiny.json", folder / "config.json")
    copy_weights(fixtures / "tiny_model_lerobot.safetensors", folder / "model.safetensors")
    return folder


@pytest.fixture
def openpi_folder(fixtures: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "openpi"
    shutil.copytree(fixtures / "openpi_norm_stats_example", folder / "assets" / "example")
    copy_weights(fixtures / "tiny_model_openpi.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"action_dim": 8, "action_horizon": 6, "precision": "float32"}))
    return folder


def observations(raw: dict[str, Tensor], state: np.ndarray, tasks: list[str]) -> Observations:
    images = torch.stack([raw[f"image_u8.{camera}"] for camera in CAMERAS], 1).permute(0, 1, 3, 4, 2)
    return Observations(images=images.numpy(), state=state, instructions=tuple(tasks))


def openpi_prompt(policy: Policy, case: dict[str, Any]) -> str:
    """LeRobot's prompt with the bins of openpi's normalisation; those of the three ordinary dims are the same."""
    stats = policy.processor.state_stats
    raw, low, high = (np.array(vector, np.float64) for vector in (case["raw_state"], stats.q01, stats.q99))
    text = build_prompt(case["task"], (raw - low) / (high - low + 1e-6) * 2.0 - 1.0, "state")
    ours, theirs = (prompt.split("State: ")[1].split() for prompt in (text, case["prompt"]))
    assert ours[:3] == theirs[:3]
    return text


@pytest.mark.parametrize("layout", ["lerobot", "openpi"])
def test_prompts_and_chunks(
    layout: str,
    lerobot_folder: Path,
    openpi_folder: Path,
    fixtures: Path,
    raw: dict[str, Tensor],
) -> None:
    """The prompts of LeRobot's preprocessor from raw states, its chunks from its inputs, its actions in env units.

    openpi adds 1e-6 to every spread, which matters to the two dims whose spread is almost nothing; the others have the
    bins of LeRobot's prompts.
    """
    tokenizer = str(fixtures / "synthetic_tokenizer.model")
    if layout == "lerobot":
        policy = load_policy(lerobot_folder, overrides=replace(OVERRIDES, tokenizer=tokenizer, max_tokens=200))
    else:
        policy = load_policy(openpi_folder, overrides=replace(OPENPI, tokenizer=tokenizer, max_tokens=200))
    cases = json.loads((fixtures / "prompts.json").read_text())["cases"][:3]
    state = np.array([case["raw_state"] for case in cases], np.float32)
    prepared = policy.prepare(observations(raw, state, [case["task"] for case in cases]))
    for case, row, valid in zip(cases, prepared.tokens, prepared.token_mask, strict=True):
        text = case["prompt"] if layout == "lerobot" else openpi_prompt(policy, case)
        assert row[valid].tolist() == policy.tokenizer.encode([text])[0]
        assert layout == "openpi" or row[valid].tolist() == case["tokens"]
    assert torch.equal(prepared.images[:, 2], raw[f"image_u8.{CAMERAS[2]}"])

    expected = load_file(fixtures / "policy_level_lerobot.safetensors")
    inputs = ModelInput(
        images=torch.stack([raw[f"image.{camera}"] for camera in CAMERAS], 1),
        image_mask=torch.ones(3, 3, dtype=torch.bool),
        tokens=raw["tokens"],
        token_mask=raw["token_mask"],
    )
    with torch.no_grad():
        sample = policy.sample_chunk(
            policy.encode_prefix(inputs), initial_noise=raw["noise"], denoise_steps=10, executed_steps=6
        )
    chunk = expected["policy.action_chunk"]
    torch.testing.assert_close(sample.actions[..., :5], chunk, rtol=0, atol=2e-5)
    stats = policy.processor.action_stats
    low, high = (np.array(vector, np.float64) for vector in (stats.q01, stats.q99))
    by_hand = (chunk.numpy().astype(np.float64) + 1.0) / 2.0 * (high - low) + low
    np.testing.assert_allclose(policy.env_actions(sample.actions), by_hand, rtol=0, atol=1e-4)


def test_what_the_files_do_not_say_is_asked_for(lerobot_folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_policy(lerobot_folder, overrides=CheckpointOverrides(vision_heads=4))
    assert "prompt format (--prompt state | state_padded | no_state)" in str(caught.value)


@pytest.mark.parametrize(("source", "layout"), [("lerobot", "z1"), ("lerobot", "lerobot"), ("openpi", "openpi")])
def test_every_layout_and_back(
    source: str, layout: str, lerobot_folder: Path, openpi_folder: Path, fixtures: Path, tmp_path: Path
) -> None:
    """Weights and settings survive a way through each layout, bit for bit."""
    tokenizer = str(fixtures / "synthetic_tokenizer.model")
    folder, overrides = (lerobot_folder, OVERRIDES) if source == "lerobot" else (openpi_folder, OPENPI)
    policy = load_policy(folder, overrides=replace(overrides, tokenizer=tokenizer))
    save_policy(policy, tmp_path / "out", layout)
    back: Policy = load_policy(tmp_path / "out")
    assert back.config == policy.config
    assert back.processor == policy.processor
    ours, theirs = back.model.state_dict(), policy.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
