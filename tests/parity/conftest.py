"""The small network whose tensors the reference code bases computed; see fixtures/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from z1.policy.config import ExpertConfig, PolicyConfig, VisionConfig, VlmConfig
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.weights import load_foreign

FIXTURES = Path(__file__).parent / "fixtures"
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")

CONFIG = PolicyConfig(
    vision=VisionConfig(width=48, depth=2, heads=4, mlp=96, patch=14, image_size=56),
    vlm=VlmConfig(width=64, depth=3, mlp=128, heads=8, kv_heads=1, head_dim=16, vocab=320),
    expert=ExpertConfig(width=32, mlp=80),
    horizon=6,
    action_dim=8,
    max_tokens=16,
)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def config() -> PolicyConfig:
    return CONFIG


@pytest.fixture(scope="session")
def raw() -> dict[str, Tensor]:
    """The references' inputs."""
    return load_file(FIXTURES / "inputs.safetensors")


@pytest.fixture(scope="session")
def inputs(raw: dict[str, Tensor]) -> ModelInput:
    """Row 0 has three cameras, row 1 lacks the right wrist's, row 2 both wrists'."""
    return ModelInput(
        images=torch.stack([raw[f"image.{camera}"] for camera in CAMERAS], 1),
        image_mask=torch.stack([raw[f"image_mask.{camera}"] for camera in CAMERAS], 1),
        tokens=raw["tokens"],
        token_mask=raw["token_mask"],
    )


@pytest.fixture
def model() -> Pi05:
    """A fresh copy of the references' network."""
    return load_foreign(CONFIG, FIXTURES / "tiny_model_lerobot.safetensors")


@pytest.fixture
def prefix(model: Pi05, inputs: ModelInput) -> PrefixCache:
    with torch.no_grad():
        return model.encode_prefix(inputs)


@pytest.fixture(scope="session")
def lerobot() -> dict[str, Tensor]:
    """What LeRobot computes in float32."""
    return load_file(FIXTURES / "outputs_lerobot_fp32.safetensors")
