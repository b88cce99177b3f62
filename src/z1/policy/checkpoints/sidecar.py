"""z1's own settings beside a checkpoint in another layout, so that it comes back exactly as it was.

A foreign layout has no place for prompt format, action bounds or statistics in float64. ``z1.json`` holds them, and is
believed only as long as it says what the other files say.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from z1.data.stats import FeatureStats
from z1.errors import CheckpointError, ConfigError
from z1.files import write_json
from z1.policy.checkpoints.jsons import read_object
from z1.policy.checkpoints.locate import CheckpointFormat
from z1.policy.checkpoints.settings import Settings
from z1.policy.checkpoints.translate import LEROBOT_MODES, to_lerobot, to_openpi
from z1.policy.config import PolicyConfig, ProcessorConfig

SIDECAR_FILE = "z1.json"
SIDECAR_FORMAT = "z1.settings/1"


def write_sidecar(folder: Path, config: PolicyConfig, processor: ProcessorConfig) -> None:
    """Writes ``z1.json``."""
    write_json(
        folder / SIDECAR_FILE,
        {"format": SIDECAR_FORMAT, "policy": config.to_json(), "processor": processor.to_json()},
    )


def read_sidecar(folder: Path, settings: Settings, layout: CheckpointFormat) -> None:
    """Notes what ``z1.json`` says, if there is one.

    Args:
        folder: The checkpoint.
        settings: What its other files say; gets everything else.
        layout: ``lerobot`` or ``openpi``.

    Raises:
        CheckpointError: It is damaged or contradicts the other files.
    """
    path = folder / SIDECAR_FILE
    if not path.exists():
        return
    value = read_object(path)
    if value.get("format") != SIDECAR_FORMAT:
        raise CheckpointError(f"{path} has format {value.get('format')!r}, expected {SIDECAR_FORMAT!r}; remove it")
    config = PolicyConfig.from_json(value.get("policy"), source=str(path))
    processor = ProcessorConfig.from_json(value.get("processor"), source=str(path))
    for name, ours in _expected(config, processor, layout).items():
        theirs = settings.get(name)
        if theirs is not None and theirs != ours:
            raise CheckpointError(
                f"{path} and {settings.origin(name)} beside it disagree about the {name.replace('_', ' ')}: the "
                f"checkpoint was changed after z1 wrote it; remove {SIDECAR_FILE} to go by the other files"
            )
    settings.put_own(config, processor, SIDECAR_FILE)


def _expected(config: PolicyConfig, processor: ProcessorConfig, layout: CheckpointFormat) -> dict[str, Any]:
    """What the other files say if they belong to these settings."""
    result: dict[str, Any] = {
        "horizon": config.horizon,
        "model_action_dim": config.action_dim,
        "image_size": config.image_size,
        "action_dim": processor.action_dim,
        "max_tokens": config.max_tokens,
    }
    try:
        if layout == "lerobot":
            name, (state, action) = to_lerobot(processor)
            result |= {"normalization": LEROBOT_MODES[name], "cameras": processor.cameras}
            result["state_dim"] = processor.state_dim
        else:
            _, (state, action) = to_openpi(processor)
            result.pop("max_tokens")
    except ConfigError as error:
        raise CheckpointError(f"{SIDECAR_FILE}: {error}") from None
    if layout == "lerobot":
        return result | {"action_stats": action, "state_stats": state}
    return result | {"action_stats": without_extremes(action), "state_stats": state and without_extremes(state)}


def without_extremes(stats: FeatureStats) -> FeatureStats:
    """Statistics as openpi's files hold them: no minimum, no maximum, no count."""
    return replace(stats, min=None, max=None, count=0)
