"""Sizes and processing settings: checks, JSON round trips and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from z1.data.stats import FeatureStats, compute_stats
from z1.errors import CheckpointError, ConfigError
from z1.policy.config import ExpertConfig, PolicyConfig, ProcessorConfig, VisionConfig, VlmConfig

ROWS = np.random.Generator(np.random.Philox(key=1)).uniform(-0.5, 0.9, (50, 4))
STATS = compute_stats(ROWS)


def processor(**changes: object) -> ProcessorConfig:
    made = ProcessorConfig.of_dataset(cameras=("front", "wrist"), state_stats=STATS, action_stats=STATS)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config", [PolicyConfig.tiny(), PolicyConfig.tiny(patch=8, image_size=96), PolicyConfig.pi05()]
)
def test_policy_config_round_trip(config: PolicyConfig) -> None:
    again = PolicyConfig.from_json(json.loads(json.dumps(config.to_json())), source="config.json")
    assert again == config
    assert again != replace(config, horizon=config.horizon + 1)


def test_published_sizes() -> None:
    config = PolicyConfig.pi05()
    assert (config.image_size, config.vision.tokens, config.horizon, config.action_dim) == (224, 256, 50, 32)
    assert PolicyConfig.pi05(horizon=10).horizon == 10
    assert PolicyConfig.tiny().initial_gate == 1.0
    assert config.initial_gate == 0.0


def test_policy_config_refusals() -> None:
    with pytest.raises(ConfigError, match=r"^vision.image_size is 64; it must be a multiple of vision.patch \(7\)$"):
        PolicyConfig.tiny(patch=7)
    with pytest.raises(ConfigError, match=r"^vision.width is 10; it must be a multiple of vision.heads \(3\)$"):
        VisionConfig(width=10, depth=1, heads=3, mlp=4, patch=4, image_size=8)
    with pytest.raises(ConfigError, match=r"^vlm.head_dim is 7; it must be even, for the rotary embedding$"):
        VlmConfig(width=8, depth=1, mlp=8, heads=2, kv_heads=1, head_dim=7, vocab=8)
    with pytest.raises(ConfigError, match=r"^vlm.heads is 3; it must be a multiple of vlm.kv_heads \(2\)$"):
        VlmConfig(width=8, depth=1, mlp=8, heads=3, kv_heads=2, head_dim=8, vocab=8)
    with pytest.raises(ConfigError, match=r"^expert.width is 3; it must be even and at least 2$"):
        ExpertConfig(width=3, mlp=4)
    with pytest.raises(ConfigError, match=r"^horizon is 0; it must be at least 1$"):
        PolicyConfig.tiny(horizon=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vlm": 3}, "c.json: expected policy.vlm to be an object, got int"),
        ({"horizont": 3}, "unknown setting in c.json 'horizont'; did you mean 'horizon'?"),
        ({"horizon": 0}, "horizon is 0; it must be at least 1"),
        ({"horizon": "8"}, "horizon in c.json is '8'; it must be of type <class 'int'>"),
    ],
)
def test_damaged_policy_config(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        PolicyConfig.from_json({**PolicyConfig.tiny().to_json(), **change}, source="c.json")
    assert str(caught.value) == message


def test_policy_config_needs_every_size() -> None:
    value = PolicyConfig.tiny().to_json()
    del value["horizon"]
    with pytest.raises(CheckpointError, match=r"c\.json is incomplete: .*horizon"):
        PolicyConfig.from_json(value, source="c.json")


@pytest.mark.parametrize(
    "made",
    [
        processor(),
        processor(prompt="no_state", state_stats=None),
        processor(normalization="mean_std", resize="torch_bilinear", action_low=None, action_high=None),
    ],
)
def test_processor_round_trip(made: ProcessorConfig) -> None:
    again = ProcessorConfig.from_json(json.loads(json.dumps(made.to_json())), source="config.json")
    assert again == made
    assert again != replace(made, cameras=("front",))


def test_the_rendering_of_the_demonstrations_is_remembered_and_older_files_lack_it() -> None:
    made = ProcessorConfig.of_dataset(cameras=["front"], state_stats=STATS, action_stats=STATS, quality="fast")
    value = made.to_json()
    assert ProcessorConfig.from_json(value, source="config.json").quality == "fast"
    del value["quality"]
    assert ProcessorConfig.from_json(value, source="config.json").quality == ""


def test_of_dataset() -> None:
    made = ProcessorConfig.of_dataset(cameras=["front"], state_stats=STATS, action_stats=STATS)
    assert (made.state_dim, made.action_dim, made.cameras, made.prompt) == (4, 4, ("front",), "state")


def test_action_bounds_are_one_or_what_was_demonstrated() -> None:
    actions = compute_stats(np.array([[0.0, -3.0], [0.5, 0.2]]))
    made = ProcessorConfig.of_dataset(cameras=["front"], state_stats=STATS, action_stats=actions)
    assert made.action_low == (-1.0, -3.0)
    assert made.action_high == (1.0, 1.0)
    given = ProcessorConfig.of_dataset(
        cameras=["front"], state_stats=STATS, action_stats=actions, action_low=(-0.1, -0.2), action_high=(0.3, 0.4)
    )
    assert (given.action_low, given.action_high) == ((-0.1, -0.2), (0.3, 0.4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ()}, "processor.cameras is (); it must be one or more camera names"),
        ({"cameras": ("a", "a")}, "processor.cameras is ('a', 'a'); it must be all different"),
        ({"prompt": "x"}, "processor.prompt is 'x'; it must be one of state, state_padded, no_state"),
        ({"quality": "x"}, "processor.quality is 'x'; it must be 'fast', 'default' or empty"),
        ({"resize": "x"}, "processor.resize is 'x'; it must be one of pil_antialias, torch_bilinear"),
        (
            {"normalization": "x"},
            "processor.normalization is 'x'; it must be one of quantile_openpi, quantile_lerobot, mean_std, "
            "mean_std_openpi",
        ),
        ({"state_dim": 5}, "processor.state_dim is 5, but the statistics have 4 dims; they must agree"),
        ({"action_low": None}, "processor.action_low and action_high must be given together, or neither"),
        ({"action_high": (1.0,)}, "processor.action_high is (1.0,); it must be 4 numbers"),
        (
            {"state_stats": None},
            "normalisation of state: mode 'quantile_openpi' needs q01 and q99, but the statistics lack q01 and q99; "
            "compute them from the dataset or choose another mode",
        ),
        (
            {"action_stats": FeatureStats(mean=(0.0,) * 4, std=(1.0,) * 4)},
            "normalisation of action: mode 'quantile_openpi' needs q01 and q99, but the statistics lack q01 and q99; "
            "compute them from the dataset or choose another mode",
        ),
    ],
)
def test_processor_refusals(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        processor(**change)
    assert str(caught.value) == message


def test_damaged_processor() -> None:
    value = processor().to_json()
    with pytest.raises(CheckpointError, match=r"^c\.json: expected processor to be an object, got NoneType$"):
        ProcessorConfig.from_json(None, source="c.json")
    with pytest.raises(
        CheckpointError, match=r"^c\.json: processor lacks prompt and has unknown promt; it was written"
    ):
        ProcessorConfig.from_json(
            {("promt" if name == "prompt" else name): value[name] for name in value}, source="c.json"
        )
    with pytest.raises(CheckpointError, match=r"^c\.json: processor.action_stats is null"):
        ProcessorConfig.from_json({**value, "action_stats": None}, source="c.json")
    with pytest.raises(CheckpointError, match=r"^c\.json: processor.state_dim is 5, but the statistics have 4 dims"):
        ProcessorConfig.from_json({**value, "state_dim": 5}, source="c.json")
