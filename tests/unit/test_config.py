"""Settings that cannot be, or that would do nothing, are refused with the setting, what it was and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from z1.config import (
    ActingConfig,
    RlConfig,
    RolloutConfig,
    SimConfig,
    UpdateConfig,
    ValidationConfig,
    config_from_dict,
    config_to_dict,
)
from z1.errors import ConfigError


def rl(rollout: RolloutConfig, *, acting: ActingConfig | None = None, **settings: Any) -> RlConfig:
    return RlConfig(policy="p", task="t", out="o", rollout=rollout, acting=acting or ActingConfig(), **settings)


IDLE = (
    "rollout.{} is {!r}, which has no effect with rollout.plan 'flat'; choose the plan 'shared_prefix' or 'tree'"
).format
NOTHING = (
    "rollout.plan is {!r} with rollout.prefix 0, which shares nothing; set rollout.prefix to the chunks until the last "
    "branch point, or choose the plan 'flat'"
).format


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prefix": 3}, IDLE("prefix", 3)),
        ({"prefix_schedule": "linear"}, IDLE("prefix_schedule", "linear")),
        ({"prefix_schedule": "adaptive"}, IDLE("prefix_schedule", "adaptive")),
        ({"plan": "tree"}, NOTHING("tree")),
        ({"plan": "shared_prefix"}, NOTHING("shared_prefix")),
        ({"plan": "tree", "prefix": -1}, "rollout.prefix is -1; it must be at least 0 chunks"),
        (
            {"plan": "tree", "prefix": 3, "group_size": 6},
            "rollout.group_size is 6; it must be a power of two with rollout.plan 'tree'",
        ),
        (
            {"plan": "tree", "prefix": 3, "tree_discount": 1.5},
            "rollout.tree_discount is 1.5; it must be in [0, 1]",
        ),
        ({"tree_discount": -0.1}, "rollout.tree_discount is -0.1; it must be in [0, 1]"),
        ({"stochastic_steps": 0}, "rollout.stochastic_steps is 0; it must be at least 1"),
        (
            {"tree_discount": 0.0},
            "rollout.tree_discount has no effect with rollout.advantage 'group'; leave it at 0.5, or choose 'tree'",
        ),
        (
            {"all_success_advantage": 0.5, "all_success_rule": False},
            "rollout.all_success_advantage has no effect without rollout.all_success_rule; leave it at 0",
        ),
        ({"noise_level": -0.5}, "rollout.noise_level is -0.5; it must be at least 0"),
        ({"reward_decay": 0.0}, "rollout.reward_decay is 0.0; it must be in (0, 1]"),
        ({"all_success_advantage": -1.0}, "rollout.all_success_advantage is -1.0; it must be at least 0"),
        ({"live_members": 7}, "rollout.live_members is 7; it must be at least rollout.group_size (8)"),
    ],
)
def test_rollout_settings_that_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RolloutConfig(**settings)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"plan": "shared_prefix", "prefix": 3, "group_size": 6},
        {"plan": "tree", "prefix": 15, "group_size": 4, "prefix_schedule": "linear", "advantage": "tree"},
        {
            "plan": "tree",
            "prefix": 15,
            "group_size": 16,
            "prefix_schedule": "adaptive",
            "advantage": "tree",
            "tree_discount": 0.0,
        },
        {"plan": "tree", "prefix": 1, "group_size": 2, "advantage": "tree", "tree_discount": 1.0},
    ],
)
def test_rollout_settings_that_fit_together(settings: dict[str, Any]) -> None:
    config = rl(RolloutConfig(**settings))
    assert config_from_dict(RlConfig, config_to_dict(config), source="test") == config


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"objective": "awfm", "awfm_negative": -1.0}, "update.awfm_negative is -1.0; it must be at least 0"),
        (
            {"objective": "grpo", "awfm_negative": 0.5},
            "update.awfm_negative has no effect with update.objective 'grpo'; leave it at 0",
        ),
        (
            {"objective": "filtered_bc", "awfm_negative": 0.5},
            "update.awfm_negative has no effect with update.objective 'filtered_bc'; leave it at 0",
        ),
        ({"awfm_max_weight": 0.5}, "update.awfm_max_weight is 0.5; it must be at least 1"),
        ({"mode": "lora", "lora_rank": 0}, "update.lora_rank is 0; it must be at least 1"),
        ({"mode": "lora", "lora_alpha": 0.0}, "update.lora_alpha is 0.0; it must be positive"),
        (
            {"mode": "joint", "lora_rank": 8},
            "update.lora_rank has no effect with update.mode 'joint'; choose the mode 'lora' or leave it at 16",
        ),
        ({"prefix_host_gb": -1.0}, "update.prefix_host_gb is -1.0; it must be at least 0"),
        (
            {"mode": "joint", "prefix_device_gb": 8.0},
            "update.prefix_device_gb has no effect with update.mode 'joint', where the VLM changes; leave it at 24",
        ),
    ],
)
def test_update_settings_that_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        UpdateConfig(**settings)
    assert str(caught.value) == text
    assert UpdateConfig(objective="awfm", awfm_negative=0.5).awfm_negative == 0.5


def test_validation_is_due_by_iterations_or_by_env_steps() -> None:
    with pytest.raises(ConfigError) as caught:
        ValidationConfig(every=5, every_env_steps=1000)
    assert str(caught.value) == ("validation.every is 5 and validation.every_env_steps 1000; set one of them to 0")
    with pytest.raises(ConfigError) as caught:
        ValidationConfig(every=0, every_env_steps=-1)
    assert str(caught.value) == "validation.every_env_steps is -1; it must be at least 0"
    assert ValidationConfig(every=0, every_env_steps=1000).every_env_steps == 1000
    assert ValidationConfig(every=5).every_env_steps == 0


@pytest.mark.parametrize(
    ("steps", "stochastic", "exclude", "text"),
    [
        (1, 1, True, "at least 2 with rollout.stochastic_steps 1 and rollout.exclude_last_step"),
        (3, 3, True, "at least 4 with rollout.stochastic_steps 3 and rollout.exclude_last_step"),
        (3, 4, False, "at least 4 with rollout.stochastic_steps 4"),
    ],
)
def test_there_must_be_a_denoise_step_for_each_stochastic_one(
    steps: int, stochastic: int, exclude: bool, text: str
) -> None:
    rollout = RolloutConfig(stochastic_steps=stochastic, exclude_last_step=exclude)
    with pytest.raises(ConfigError) as caught:
        rl(rollout, acting=ActingConfig(denoise_steps=steps))
    assert str(caught.value) == f"acting.denoise_steps is {steps}; it must be {text}"
    assert rl(rollout, acting=ActingConfig(denoise_steps=stochastic + exclude)).acting.denoise_steps <= 4


@pytest.mark.parametrize(("horizon", "chunks"), [(64, 8), (65, 9), (1, 1)])
def test_a_prefix_must_be_shorter_than_an_episode(horizon: int, chunks: int) -> None:
    """Chunks of eight env steps; the last one may be cut short."""
    rollout = RolloutConfig(plan="tree", prefix=chunks)
    with pytest.raises(ConfigError) as caught:
        rl(rollout, sim=SimConfig(horizon=horizon))
    assert str(caught.value) == (
        f"rollout.prefix is {chunks}; it must be less than the {chunks} chunks of an episode "
        "(sim.horizon / acting.chunk_length)"
    )
    assert rl(rollout, sim=SimConfig(horizon=horizon + 8)).rollout.prefix == chunks
    assert rl(rollout, sim=SimConfig(horizon=0)).rollout.prefix == chunks, (
        "the simulator's own horizon is not known yet"
    )
