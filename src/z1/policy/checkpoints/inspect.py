"""What a checkpoint holds, without reading a weight: parts of the network, settings and where they are from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from z1.data.stats import VECTOR_FIELDS, FeatureStats
from z1.errors import CheckpointError
from z1.policy.checkpoints.load import Checkpoint, open_checkpoint
from z1.policy.checkpoints.settings import WANTED, CheckpointOverrides
from z1.policy.config import PolicyConfig
from z1.policy.weights import EMBEDDING, VLM_HEAD, check_rules

DEAD = "without influence on actions"
PARTS = (
    ("image encoder", (".vision_tower.", "vision.")),
    ("projector", (".multi_modal_projector.", "projector.")),
    ("token embedding", (".embed_tokens.", "vlm.embedding")),
    ("VLM layers", (".language_model.", "vlm.")),
    ("expert, adaptive norms", (".dense.", "expert.modulation.")),
    ("expert layers", (".gemma_expert.", "expert.")),
    ("action and time projections", ("action_", "time_")),
)
"""Parts of the network, in order, with what a tensor's name of ours begins with or a foreign one contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the network.

    Attributes:
        name: In words.
        tensors: Number of tensors.
        parameters: Number of numbers in them.
        nbytes: Size in the files.
        dtypes: Dtypes in the files.
    """

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``z1 inspect`` shows.

    Attributes:
        folder: The checkpoint.
        format: Its layout.
        parts: The network.
        settings: Setting, value and origin, in words; origin is empty when a setting is unknown, and its value then
            tells the flag that gives it.
        misfit: What is wrong with the tensors; empty when nothing is.
    """

    folder: Path
    format: str
    parts: tuple[Part, ...]
    settings: tuple[tuple[str, str, str], ...]
    misfit: str

    @property
    def unknown(self) -> int:
        """Number of settings that nobody has said."""
        return sum(not origin for _, _, origin in self.settings)


def inspect_checkpoint(path: str | Path, overrides: CheckpointOverrides | None = None) -> Report:
    """Describes a checkpoint.

    Args:
        path: As ``load_policy``.
        overrides: As ``load_policy``.

    Raises:
        CheckpointError: There is none, or it is damaged, pickled or contradicts itself.
        ConfigError: The overrides do not fit it.
    """
    checkpoint = open_checkpoint(path, overrides)
    config = _any_config(checkpoint)
    misfit = ""
    try:
        check_rules(checkpoint.files, checkpoint.rules(config), checkpoint.unused(config))
    except CheckpointError as error:
        misfit = str(error)
    return Report(
        folder=checkpoint.folder,
        format=checkpoint.format,
        parts=_parts(checkpoint, config),
        settings=_settings(checkpoint),
        misfit=misfit,
    )


def _any_config(checkpoint: Checkpoint) -> PolicyConfig:
    """The network's sizes; what no tensor depends on may be made up."""
    known = checkpoint.settings
    return checkpoint.sizes.config(
        vision_heads=known.get("vision_heads") or 1,
        layout=known.get("layout"),
        horizon=known.get("horizon") or 1,
        max_tokens=known.get("max_tokens") or 1,
    )


def _parts(checkpoint: Checkpoint, config: PolicyConfig) -> tuple[Part, ...]:
    tensors, unused = dict(checkpoint.files.tensors), checkpoint.unused(config)
    if tensors.get(EMBEDDING) is tensors.get(VLM_HEAD):
        tensors.pop(VLM_HEAD, None)
    found: dict[str, Part] = {}
    for name, stored in tensors.items():
        part = DEAD if name in unused else _part(name)
        before = found.get(part, Part(name=part, tensors=0, parameters=0, nbytes=0, dtypes=()))
        found[part] = replace(
            before,
            tensors=before.tensors + 1,
            parameters=before.parameters + prod(stored.shape),
            nbytes=before.nbytes + stored.nbytes,
            dtypes=tuple(sorted({*before.dtypes, stored.dtype})),
        )
    order = [*(name for name, _ in PARTS), "unknown", DEAD]
    return tuple(sorted(found.values(), key=lambda part: order.index(part.name)))


def _part(name: str) -> str:
    for part, marks in PARTS:
        if any(mark in name if mark.startswith(".") else name.startswith(mark) for mark in marks):
            return part
    return "unknown"


def _settings(checkpoint: Checkpoint) -> tuple[tuple[str, str, str], ...]:
    known, sizes = checkpoint.settings, checkpoint.sizes
    rows = [
        ("image size", f"{sizes.image_size} pixels, patches of {sizes.vision[3]}", "weights"),
        ("model action dims", str(sizes.action_dim), "weights"),
    ]
    missing = set(known.missing())
    for name, (words, flag) in WANTED.items():
        if name in missing:
            rows.append((words, f"unknown: {flag}", ""))
        elif known.get(name) is not None:
            rows.append((words, _shown(known.get(name)), known.origin(name)))
    for name in ("action_low", "action_high", "allow_constant_dims"):
        if known.get(name):
            rows.append((name.replace("_", " "), _shown(known.get(name)), known.origin(name)))
    return tuple(rows)


def _shown(value: Any) -> str:
    if isinstance(value, FeatureStats):
        names = [name for name in VECTOR_FIELDS if value.vector(name) is not None]
        return f"{value.dim} dims: {', '.join(names)}"
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
