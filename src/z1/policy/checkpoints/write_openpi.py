"""The files of an openpi directory beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from z1.files import write_json
from z1.policy.checkpoints.openpi import ASSETS, NORM_STATS
from z1.policy.checkpoints.translate import to_openpi
from z1.policy.checkpoints.write_shared import TOKENIZER_FOLDER, precision, variants, write_tokenizer
from z1.policy.policy import CONFIG_FILE, Policy

ASSET = "z1"
"""Name of the asset that holds the statistics."""


def write_openpi(policy: Policy, folder: Path) -> None:
    """Writes config, statistics and tokenizer.

    Args:
        policy: The policy.
        folder: The directory, which exists.

    Raises:
        ConfigError: openpi's normalisation cannot express the policy's.

    Source: openpi ``examples/convert_jax_model_to_pytorch.py`` (config.json), ``shared/normalize.py`` (norm_stats).
    """
    _, (state, action) = to_openpi(policy.processor)
    vlm, expert = variants(policy.config)
    write_json(
        folder / CONFIG_FILE,
        {
            "action_dim": policy.config.action_dim,
            "action_horizon": policy.config.horizon,
            "paligemma_variant": vlm,
            "action_expert_variant": expert,
            "precision": precision(policy),
        },
    )
    stats: dict[str, Any] = {}
    for name, value in (("state", state), ("actions", action)):
        if value is not None:
            vectors = {field: value.vector(field) for field in ("mean", "std", "q01", "q99")}
            stats[name] = {field: None if vector is None else list(vector) for field, vector in vectors.items()}
    (folder / ASSETS / ASSET).mkdir(parents=True)
    write_json(folder / ASSETS / ASSET / NORM_STATS, {"norm_stats": stats})
    write_tokenizer(policy, folder / TOKENIZER_FOLDER)
