"""Policies from checkpoints of z1, LeRobot and openpi."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from z1.errors import CheckpointError, ConfigError
from z1.policy.checkpoints.lerobot import read_lerobot
from z1.policy.checkpoints.locate import (
    HUB,
    TOKENIZER_PATTERNS,
    CheckpointFormat,
    checkpoint_folder,
    detect_format,
    download,
)
from z1.policy.checkpoints.openpi import note_stats, read_openpi
from z1.policy.checkpoints.settings import GIVEN, CheckpointOverrides, Settings
from z1.policy.checkpoints.sidecar import read_sidecar
from z1.policy.checkpoints.sizes import Sizes
from z1.policy.checkpoints.write_shared import TOKENIZER_FOLDER
from z1.policy.config import PolicyConfig
from z1.policy.policy import CONFIG_FILE, Policy, read_settings
from z1.policy.tensor_files import OnBytes, TensorFiles
from z1.policy.tokenizer import Tokenizer, stored_tokenizer
from z1.policy.weights import (
    Rule,
    check_rules,
    choose_embedding,
    foreign_rules,
    is_foreign,
    own_rules,
    read_model,
    unused_foreign_names,
    unwrapped,
)

Dtype = Literal["float32", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose settings and tensor names are known; no weight has been read.

    Attributes:
        folder: Where it is.
        format: Its layout.
        settings: What it and the user say.
        files: Its tensors.
        sizes: What they say about the network.
    """

    folder: Path
    format: CheckpointFormat
    settings: Settings
    files: TensorFiles
    sizes: Sizes

    def rules(self, config: PolicyConfig) -> list[Rule]:
        """Which tensors make which parameter."""
        return own_rules(config) if self.format == "z1" else foreign_rules(config)

    def unused(self, config: PolicyConfig) -> frozenset[str]:
        """Tensors without influence on actions."""
        return frozenset() if self.format == "z1" else unused_foreign_names(config)


def open_checkpoint(path: str | Path, overrides: CheckpointOverrides | None = None) -> Checkpoint:
    """Reads everything of a checkpoint but its weights.

    Args:
        path: As ``load_policy``.
        overrides: As ``load_policy``.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged, pickled or contradicts itself.
        ConfigError: The overrides do not fit it.
    """
    overrides = overrides or CheckpointOverrides()
    folder = checkpoint_folder(path)
    layout = detect_format(folder)
    settings = Settings(str(folder))
    if layout == "z1":
        config, processor = read_settings(folder)
        files, sizes = TensorFiles.of_folder(folder), Sizes.of_config(config)
        settings.put_own(config, processor, CONFIG_FILE)
        settings.put("model_action_dim", config.action_dim, CONFIG_FILE)
        settings.put("tokenizer", str(stored_tokenizer(folder)), folder.name)
    else:
        files = TensorFiles.of_folder(folder, unwrapped)
        choose_embedding(files)
        if not is_foreign(files.tensors):
            raise CheckpointError(
                f"{files.where} holds no pi0.5: no tensor begins with paligemma_with_expert, as those of openpi and "
                f"LeRobot do, and {CONFIG_FILE} is not that of a policy of z1"
            )
        sizes = Sizes.of_foreign(files.shapes)
        settings.put("model_action_dim", sizes.action_dim, "weights")
        settings.put("image_size", sizes.image_size, "weights")
        settings.put("vision_heads", sizes.vision_heads, "SigLIP So400m")
        if layout == "lerobot":
            read_lerobot(folder, settings)
        else:
            read_openpi(folder, settings, overrides.asset)
        _find_tokenizer(folder, settings)
        read_sidecar(folder, settings, layout)
    if overrides.asset and layout != "openpi":
        raise ConfigError(f"asset is {overrides.asset!r}, but {folder} is no checkpoint of openpi; leave it out")
    if overrides.stats:
        note_stats(Path(overrides.stats), settings)
    settings.apply(overrides)
    return Checkpoint(folder=folder, format=layout, settings=settings, files=files, sizes=sizes)


def load_policy(
    path: str | Path,
    *,
    overrides: CheckpointOverrides | None = None,
    dtype: Dtype = "float32",
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> Policy:
    """A policy from a checkpoint of z1, LeRobot or openpi.

    Weights are read tensor by tensor into the network's own memory, and only those that influence actions. Nothing is
    unpickled.

    Args:
        path: A policy folder or a run folder of z1; a LeRobot policy directory; an openpi PyTorch directory; or
            ``hf:owner/name[@revision]``, where ``hf:`` may be left out when no such folder exists.
        overrides: What the checkpoint does not say, or what shall be otherwise.
        dtype: Of the network; in bfloat16 some parts stay float32, see ``z1.policy.weights.parameter_dtype``.
        device: Of the network.
        on_bytes: Told how many bytes of weights are read, of how many.

    Returns:
        The policy.

    Raises:
        CheckpointError: There is no checkpoint; it is damaged, pickled or contradicts itself; something is neither said
            by it nor given; or tensors are unknown, missing or of another shape.
        ConfigError: The overrides do not fit it.
        MissingExtraError: Its tokenizer needs the package tokenizers.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    checkpoint = open_checkpoint(path, overrides)
    settings = checkpoint.settings
    settings.require_all()
    config, processor = settings.policy_config(checkpoint.sizes), settings.processor()
    rules = checkpoint.rules(config)
    check_rules(checkpoint.files, rules, checkpoint.unused(config))
    place, given = settings.get("tokenizer"), settings.origin("tokenizer") == GIVEN
    tokenizer = Tokenizer.load(Path(place)) if checkpoint.format == "z1" and not given else load_tokenizer(place)
    model = read_model(config, checkpoint.files, rules, dtype=DTYPES[dtype], device=device, on_bytes=on_bytes)
    try:
        return Policy(model, processor, tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error}") from None


def load_tokenizer(place: str) -> Tokenizer:
    """A tokenizer from a file, a folder or the hub.

    Args:
        place: A ``tokenizer.model`` or ``tokenizer.json``, a folder with one, or ``hf:owner/name``.

    Raises:
        CheckpointError: There is none.
        MissingExtraError: It needs the package tokenizers.
    """
    path = Path(place)
    if place.startswith(HUB):
        try:
            path = download(place.removeprefix(HUB), TOKENIZER_PATTERNS)
        except CheckpointError as error:
            raise CheckpointError(f"the tokenizer {error}; --tokenizer FILE gives another") from None
    if path.is_dir():
        path = stored_tokenizer(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no tokenizer at {path}; give PaliGemma's tokenizer.model or tokenizer.json with --tokenizer FILE"
        )
    return Tokenizer.load(path)


def _find_tokenizer(folder: Path, settings: Settings) -> None:
    """Notes a tokenizer that lies in the checkpoint where no processor names one that exists."""
    known = settings.get("tokenizer")
    if known is not None and Path(known).exists():
        return
    for place in (folder / TOKENIZER_FOLDER, folder):
        if stored_tokenizer(place).is_file():
            settings.put("tokenizer", str(stored_tokenizer(place)), str(place.name))
            return
