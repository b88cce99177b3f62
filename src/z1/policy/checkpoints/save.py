"""Policies to checkpoints of z1, LeRobot and openpi."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from z1.errors import ConfigError
from z1.files import atomic_folder
from z1.policy.checkpoints.locate import CheckpointFormat
from z1.policy.checkpoints.sidecar import write_sidecar
from z1.policy.checkpoints.write_lerobot import write_lerobot
from z1.policy.checkpoints.write_openpi import write_openpi
from z1.policy.checkpoints.write_shared import CUSTOM, TOKENIZER_FOLDER, variants
from z1.policy.lora import merged
from z1.policy.policy import Policy
from z1.policy.tensor_files import MODEL_FILE, Entry, OnBytes, write_tensors
from z1.policy.weights import EMBEDDING, VLM_HEAD, dead_foreign_shapes, foreign_rules

FORMATS: tuple[str, ...] = get_args(CheckpointFormat)
PROGRAMS = {"lerobot": "LeRobot", "openpi": "openpi"}


def save_policy(
    policy: Policy,
    path: str | Path,
    format: CheckpointFormat = "z1",
    *,
    replace: bool = False,
    on_bytes: OnBytes | None = None,
) -> None:
    """Writes a policy as a folder, in one move.

    Tensors that LeRobot and openpi insist on, though no action depends on them, are written as zeros (the language
    model's head as the embedding, to which it is tied). ``z1.json`` beside the foreign files holds what they have no
    place for, so that the policy comes back exactly.

    Args:
        policy: The policy.
        path: The folder.
        format: ``z1``, ``lerobot`` or ``openpi``.
        replace: Whether an existing folder is replaced.
        on_bytes: Told how many bytes of weights are written, of how many.

    Raises:
        RunFolderError: The folder exists already or cannot be written.
        ConfigError: There is no such format, or it cannot express the policy's normalisation.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if format == "z1":
        policy.save(path, replace=replace, on_bytes=on_bytes)
        return
    with atomic_folder(Path(path), replace=replace) as folder:
        if format == "lerobot":
            write_lerobot(policy, folder)
        else:
            write_openpi(policy, folder)
        write_sidecar(folder, policy.config, policy.processor)
        _write_weights(policy, folder, format, on_bytes)


def _write_weights(policy: Policy, folder: Path, format: CheckpointFormat, on_bytes: OnBytes | None) -> None:
    """Writes ``model.safetensors`` by foreign names, a tensor at a time.

    Source: LeRobot ``save_pretrained`` (prefix ``model.``, both embeddings); openpi ``safetensors.torch.save_model``
    (no prefix; the embedding under the head's name, with its other name in the metadata).
    """
    lerobot = format == "lerobot"
    prefix = "model." if lerobot else ""
    parameters = merged(policy.model, policy.model.state_dict())
    entries: list[Entry] = []

    def add(name: str, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        entries.append(Entry(name=prefix + name, shape=shape, dtype=tensor.dtype, make=lambda: tensor))

    for rule in foreign_rules(policy.config):
        pieces = parameters[rule.name].split([shape[0] for _, shape in rule.parts])
        for (name, shape), piece in zip(rule.parts, pieces, strict=True):
            if name == EMBEDDING:
                add(VLM_HEAD, piece)
            if name != EMBEDDING or lerobot:
                add(name, piece.reshape(shape))
    for name, shape in dead_foreign_shapes(policy.config).items():
        if name != VLM_HEAD:
            dtype = _dead_dtype(name, parameters)
            entries.append(Entry(name=prefix + name, shape=shape, dtype=dtype, make=_zeros(shape, dtype)))
    metadata = {"format": "pt"} if lerobot else {EMBEDDING: VLM_HEAD}
    write_tensors(folder / MODEL_FILE, entries, metadata, on_bytes)


def _dead_dtype(name: str, parameters: dict[str, Tensor]) -> torch.dtype:
    """The dtype of a tensor without influence: that of its neighbours."""
    return parameters["vlm.last.norm1.weight" if "norm" in name else "vlm.embedding"].dtype


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape, dtype=dtype)


def differences(policy: Policy, format: CheckpointFormat) -> list[str]:
    """What the other program will do differently with an exported policy, or has to be told, in sentences.

    Args:
        policy: The policy.
        format: ``lerobot`` or ``openpi``; z1 itself does nothing differently.
    """
    processor, notes = policy.processor, []
    if format != "z1" and CUSTOM in variants(policy.config):
        notes.append(f"{PROGRAMS[format]} builds networks of pi0.5's own sizes; it does not load this one.")
    if format == "lerobot":
        notes.append(
            "LeRobot up to 0.6.1 looks for the tokenizer where it is started: start it in the new folder, or override "
            f"tokenizer_name of its tokenizer_processor with the path of {TOKENIZER_FOLDER}/; it needs the packages "
            "sentencepiece and protobuf."
        )
        if processor.prompt != "state":
            notes.append(
                "LeRobot since 0.5 writes the state into the prompt in its real width; "
                f"here the prompt is {processor.prompt!r}."
            )
        if processor.resize != "torch_bilinear":
            notes.append(f"LeRobot resizes without antialiasing; give it images of {policy.config.image_size} pixels.")
    if format == "openpi":
        told = [f"discrete_state_input={processor.prompt != 'no_state'}"]
        told.append(f"use_quantile_norm={not processor.normalization.startswith('mean_std')}")
        told.append(f"cameras {', '.join(processor.cameras)} as its image keys in this order")
        notes.append(f"openpi's training config has to say: pi05=True, {'; '.join(told)}.")
        if processor.prompt == "state_padded":
            notes.append(
                "openpi writes the state into the prompt in its real width; here the prompt is 'state_padded'."
            )
        if processor.resize != "pil_antialias":
            notes.append(f"openpi resizes with antialiasing; give it images of {policy.config.image_size} pixels.")
    if format != "z1" and processor.action_low is not None:
        notes.append("Actions are not clipped to the policy's bounds there.")
    return notes
