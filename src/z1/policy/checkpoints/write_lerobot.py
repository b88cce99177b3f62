"""The files of a LeRobot policy directory beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from z1.data.stats import VECTOR_FIELDS, FeatureStats
from z1.files import write_json
from z1.policy.checkpoints.lerobot import ACTION, IMAGES, PROMPT_STEP, STATE
from z1.policy.checkpoints.locate import POSTPROCESSOR, PREPROCESSOR
from z1.policy.checkpoints.translate import to_lerobot
from z1.policy.checkpoints.write_shared import TOKENIZER_FOLDER, precision, variants, write_tokenizer
from z1.policy.policy import CONFIG_FILE, Policy

PRE_STATS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
POST_STATS = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"

TRAINING_DEFAULTS: dict[str, Any] = {
    "time_sampling_beta_alpha": 1.5,
    "time_sampling_beta_beta": 1.0,
    "time_sampling_scale": 0.999,
    "time_sampling_offset": 0.001,
    "gradient_checkpointing": False,
    "compile_model": False,
    "compile_mode": "max-autotune",
    "freeze_vision_encoder": False,
    "train_expert_only": False,
    "optimizer_lr": 2.5e-05,
    "optimizer_betas": [0.9, 0.95],
    "optimizer_eps": 1e-08,
    "optimizer_weight_decay": 0.01,
    "optimizer_grad_clip_norm": 1.0,
    "scheduler_warmup_steps": 1000,
    "scheduler_decay_steps": 30000,
    "scheduler_decay_lr": 2.5e-06,
}
"""LeRobot's own defaults of settings that matter only to its training."""


def write_lerobot(policy: Policy, folder: Path) -> None:
    """Writes config, processors with their statistics, and tokenizer.

    Args:
        policy: The policy.
        folder: The directory, which exists.

    Source: LeRobot 0.5.1 to 0.6 (``PI05Config``, ``make_pi05_pre_post_processors``). Settings that came later than
    0.5.1 are left at their defaults by leaving them out.
    """
    processor, config = policy.processor, policy.config
    mode, (state, action) = to_lerobot(processor)
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    size = config.image_size
    inputs: dict[str, Any] = {
        f"{IMAGES}{camera}": {"type": "VISUAL", "shape": [3, size, size]} for camera in processor.cameras
    }
    inputs[STATE] = {"type": "STATE", "shape": [processor.state_dim]}
    outputs = {ACTION: {"type": "ACTION", "shape": [processor.action_dim]}}
    vlm, expert = variants(config)
    write_json(
        folder / CONFIG_FILE,
        {
            "type": "pi05",
            "n_obs_steps": 1,
            "input_features": inputs,
            "output_features": outputs,
            "device": "cpu",
            "use_amp": False,
            "push_to_hub": False,
            "repo_id": None,
            "private": None,
            "tags": None,
            "license": None,
            "paligemma_variant": vlm,
            "action_expert_variant": expert,
            "dtype": precision(policy),
            "chunk_size": config.horizon,
            "n_action_steps": config.horizon,
            "max_state_dim": max(config.action_dim, processor.state_dim),
            "max_action_dim": config.action_dim,
            "num_inference_steps": 10,
            "min_period": 0.004,
            "max_period": 4.0,
            "image_resolution": [size, size],
            "empty_cameras": 0,
            "tokenizer_max_length": config.max_tokens,
            "normalization_mapping": norm_map,
            **TRAINING_DEFAULTS,
        },
    )
    _write_processors(folder, norm_map, inputs, outputs, config.max_tokens)
    stats = {f"{STATE}.{field}": tensor for field, tensor in _tensors(state)}
    stats |= {f"{ACTION}.{field}": tensor for field, tensor in _tensors(action)}
    for name in (PRE_STATS, POST_STATS):
        save_file(stats, folder / name)
    write_tokenizer(policy, folder / TOKENIZER_FOLDER)


def _write_processors(
    folder: Path, norm_map: dict[str, str], inputs: dict[str, Any], outputs: dict[str, Any], max_tokens: int
) -> None:
    def step(name: str, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return {"registry_name": name, "config": config or {}, **more}

    device = step("device_processor", {"device": "cpu", "float_dtype": None})
    tokenizer = {
        "max_length": max_tokens,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": TOKENIZER_FOLDER,
    }
    before = [
        step("rename_observations_processor", {"rename_map": {}}),
        step("to_batch_processor"),
        step("relative_actions_processor", {"enabled": False, "exclude_joints": ["gripper"], "action_names": None}),
        step(
            "normalizer_processor",
            {"eps": 1e-08, "features": inputs | outputs, "norm_map": norm_map},
            state_file=PRE_STATS,
        ),
        step(PROMPT_STEP),
        step("tokenizer_processor", tokenizer, artifacts={"tokenizer_name": TOKENIZER_FOLDER}),
        device,
    ]
    after = [
        step(
            "unnormalizer_processor", {"eps": 1e-08, "features": outputs, "norm_map": norm_map}, state_file=POST_STATS
        ),
        step("absolute_actions_processor", {"enabled": False}),
        device,
    ]
    write_json(folder / PREPROCESSOR, {"name": "policy_preprocessor", "steps": before})
    write_json(folder / POSTPROCESSOR, {"name": "policy_postprocessor", "steps": after})


def _tensors(stats: FeatureStats | None) -> list[tuple[str, torch.Tensor]]:
    if stats is None:
        return []
    vectors = ((field, stats.vector(field)) for field in VECTOR_FIELDS)
    return [(field, torch.tensor(vector, dtype=torch.float32)) for field, vector in vectors if vector is not None]
