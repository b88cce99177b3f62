"""An openpi PyTorch directory: what its config and assets say.

Source: openpi ``examples/convert_jax_model_to_pytorch.py``, ``shared/normalize.py``, ``models/pi0_config.py``.
"""

from __future__ import annotations

from pathlib import Path

from z1.errors import CheckpointError, ConfigError, UnknownNameError
from z1.policy.checkpoints.jsons import read_object, typed
from z1.policy.checkpoints.settings import Settings, is_padded, read_stats
from z1.policy.policy import CONFIG_FILE

ASSETS, NORM_STATS = "assets", "norm_stats.json"
MAX_TOKENS = 200
"""openpi's prompt length of every pi0.5."""


def read_openpi(folder: Path, settings: Settings, asset: str = "") -> None:
    """Notes everything that an openpi directory says.

    Prompt format, normalisation, cameras and tokenizer live in openpi's training configs, not in its checkpoints.

    Args:
        folder: The directory.
        settings: Where to note it.
        asset: Which statistics, where there are several.

    Raises:
        CheckpointError: A file is damaged.
        UnknownNameError: There is no such asset.
    """
    path = folder / CONFIG_FILE
    if path.exists():
        config, source = read_object(path), str(path)
        if config.get("pi05") is False:
            raise CheckpointError(f"{source}: pi05 is False; z1 reads pi0.5, not pi0")
        settings.put("horizon", typed(config, "action_horizon", int, source), CONFIG_FILE)
        settings.agree("model_action_dim", typed(config, "action_dim", int, source), CONFIG_FILE)
        settings.put("max_tokens", typed(config, "max_token_len", int, source), CONFIG_FILE)
    if settings.get("max_tokens") is None:
        settings.put("max_tokens", MAX_TOKENS, "openpi's of every pi0.5")
    settings.put("resize", "pil_antialias", "openpi's way")
    found = {
        str(file.parent.relative_to(folder / ASSETS)): file for file in sorted((folder / ASSETS).rglob(NORM_STATS))
    }
    if asset and asset not in found:
        raise UnknownNameError("asset", asset, found)
    if not asset and len(found) > 1:
        raise ConfigError(f"{folder / ASSETS} holds statistics of {', '.join(found)}; choose one of them with --asset")
    if found:
        note_stats(found[asset or next(iter(found))], settings)


def note_stats(path: Path, settings: Settings) -> None:
    """Notes the statistics of a file, and the widths that follow from them.

    Statistics that are as wide as the model and end in zeros are padded: then the real width is not known.

    Args:
        path: A ``norm_stats.json`` of openpi, or a LeRobotDataset's ``stats.json``.
        settings: Where to note it; the model's action dims are known.

    Raises:
        CheckpointError: The file is damaged or holds no statistics of the action.
    """
    state, action = read_stats(read_object(path), str(path))
    if action is None:
        raise CheckpointError(f"{path} holds no statistics of the action")
    width = settings.get("model_action_dim")
    for name, stats in (("state", state), ("action", action)):
        settings.put(f"{name}_stats", stats, str(path.name))
        if stats is not None and not is_padded(stats, width or 0):
            settings.put(f"{name}_dim", stats.dim, str(path.name))
