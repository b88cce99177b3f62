"""Tensors in files: reading safetensors strictly, and the tensor names of openpi and LeRobot.

Both code bases store the same tensors under the same names; LeRobot's carry a prefix and an embedding of their own, and
openpi stores the embedding as the language model's head. Here projections that read the same input are one matrix; a
``Rule`` says of which foreign tensors each of ours is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from z1.errors import CheckpointError
from z1.policy.config import PolicyConfig
from z1.policy.pi05 import Pi05

SHOWN = 5
"""Tensor names that an error lists of each kind."""

VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model"
LANGUAGE = "paligemma_with_expert.paligemma.model.language_model"
PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear"
EXPERT = "paligemma_with_expert.gemma_expert.model"
EMBEDDING = f"{LANGUAGE}.embed_tokens.weight"
VLM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Where one of our tensors comes from.

    Attributes:
        name: Our name.
        shape: Our shape.
        parts: Foreign names and shapes, stacked along the first axis; the others are flattened.
    """

    name: str
    shape: Shape
    parts: tuple[tuple[str, Shape], ...]


def foreign_rules(config: PolicyConfig) -> list[Rule]:
    """The rules of a network: one per parameter of ``Pi05``, in openpi's names."""
    rules = [*_vision_rules(config), *_vlm_rules(config), *_expert_rules(config)]
    width, dims = config.expert.width, config.action_dim
    for ours, theirs, shape in (
        ("action_in", "action_in_proj", (width, dims)),
        ("action_out", "action_out_proj", (dims, width)),
        ("time_in", "time_mlp_in", (width, width)),
        ("time_out", "time_mlp_out", (width, width)),
    ):
        rules += _linear(ours, [(theirs, shape[0])], shape[1])
    return rules


def _rule(name: str, parts: Iterable[tuple[str, Shape]]) -> Rule:
    parts = tuple(parts)
    rows = sum(shape[0] for _, shape in parts)
    rest = prod(parts[0][1][1:])
    return Rule(name=name, shape=(rows, rest) if len(parts[0][1]) > 1 else (rows,), parts=parts)


def _linear(name: str, parts: list[tuple[str, int]], inputs: int, *, bias: bool = True) -> list[Rule]:
    rules = [_rule(f"{name}.weight", [(f"{theirs}.weight", (rows, inputs)) for theirs, rows in parts])]
    if bias:
        rules.append(_rule(f"{name}.bias", [(f"{theirs}.bias", (rows,)) for theirs, rows in parts]))
    return rules


def _layer_norm(name: str, theirs: str, width: int) -> list[Rule]:
    return [_rule(f"{name}.{kind}", [(f"{theirs}.{kind}", (width,))]) for kind in ("weight", "bias")]


def _vision_rules(config: PolicyConfig) -> list[Rule]:
    vision, width = config.vision, config.vision.width
    patch = (f"{VISION}.embeddings.patch_embedding", (width, 3, vision.patch, vision.patch))
    rules = [
        _rule("vision.patch.weight", [(f"{patch[0]}.weight", patch[1])]),
        _rule("vision.patch.bias", [(f"{patch[0]}.bias", (width,))]),
        _rule("vision.position", [(f"{VISION}.embeddings.position_embedding.weight", (vision.tokens, width))]),
        *_layer_norm("vision.norm", f"{VISION}.post_layernorm", width),
        *_linear("projector", [(PROJECTOR, config.vlm.width)], width),
    ]
    for i in range(vision.depth):
        ours, theirs = f"vision.layers.{i}", f"{VISION}.encoder.layers.{i}"
        rules += _layer_norm(f"{ours}.norm1", f"{theirs}.layer_norm1", width)
        rules += _layer_norm(f"{ours}.norm2", f"{theirs}.layer_norm2", width)
        rules += _linear(f"{ours}.qkv", [(f"{theirs}.self_attn.{x}_proj", width) for x in "qkv"], width)
        rules += _linear(f"{ours}.out", [(f"{theirs}.self_attn.out_proj", width)], width)
        rules += _linear(f"{ours}.up", [(f"{theirs}.mlp.fc1", vision.mlp)], width)
        rules += _linear(f"{ours}.down", [(f"{theirs}.mlp.fc2", width)], vision.mlp)
    return rules


def _gemma_layer(ours: str, theirs: str, width: int, mlp: int, config: PolicyConfig) -> list[Rule]:
    layout = config.vlm
    queries, pairs = layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    attention, hidden = f"{theirs}.self_attn", f"{theirs}.mlp"
    qkv = [(f"{attention}.q_proj", queries), (f"{attention}.k_proj", pairs), (f"{attention}.v_proj", pairs)]
    gate_up = [(f"{hidden}.gate_proj", mlp), (f"{hidden}.up_proj", mlp)]
    return [
        *_linear(f"{ours}.attention.qkv", qkv, width, bias=False),
        *_linear(f"{ours}.attention.out", [(f"{attention}.o_proj", width)], queries, bias=False),
        *_linear(f"{ours}.mlp.gate_up", gate_up, width, bias=False),
        *_linear(f"{ours}.mlp.down", [(f"{hidden}.down_proj", width)], mlp, bias=False),
    ]


def _vlm_rules(config: PolicyConfig) -> list[Rule]:
    vlm, width = config.vlm, config.vlm.width
    rules = [_rule("vlm.embedding", [(EMBEDDING, (vlm.vocab, width))])]
    for i in range(vlm.depth - 1):
        ours, theirs = f"vlm.layers.{i}", f"{LANGUAGE}.layers.{i}"
        rules.append(_rule(f"{ours}.norm1.weight", [(f"{theirs}.input_layernorm.weight", (width,))]))
        rules.append(_rule(f"{ours}.norm2.weight", [(f"{theirs}.post_attention_layernorm.weight", (width,))]))
        rules += _gemma_layer(ours, theirs, width, vlm.mlp, config)
    last, pairs = f"{LANGUAGE}.layers.{vlm.depth - 1}", vlm.kv_heads * vlm.head_dim
    rules.append(_rule("vlm.last.norm1.weight", [(f"{last}.input_layernorm.weight", (width,))]))
    rules += _linear("vlm.last.kv", [(f"{last}.self_attn.{x}_proj", pairs) for x in "kv"], width, bias=False)
    return rules


def _expert_rules(config: PolicyConfig) -> list[Rule]:
    width, depth = config.expert.width, config.vlm.depth
    norms = [
        f"{EXPERT}.layers.{i}.{norm}.dense"
        for i in range(depth)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    rules = _linear("expert.modulation", [(norm, 3 * width) for norm in [*norms, f"{EXPERT}.norm.dense"]], width)
    for i in range(depth):
        rules += _gemma_layer(f"expert.layers.{i}", f"{EXPERT}.layers.{i}", width, config.expert.mlp, config)
    return rules


def unused_foreign_names(config: PolicyConfig) -> frozenset[str]:
    """Tensors of the other code bases that never influence an action: heads, the VLM's last layer's tail, its norm."""
    last = f"{LANGUAGE}.layers.{config.vlm.depth - 1}"
    tail = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = [f"{last}.{name}.weight" for name in (*tail, "post_attention_layernorm")]
    return frozenset([*names, f"{LANGUAGE}.norm.weight", VLM_HEAD, EXPERT_HEAD])


def to_foreign(config: PolicyConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (weights or gradients) in openpi's names and shapes, without the ones that are not used.

    Args:
        config: Sizes.
        tensors: By our names; names that are absent are left out.
    """
    result: dict[str, Tensor] = {}
    for rule in foreign_rules(config):
        if rule.name in tensors:
            pieces = tensors[rule.name].split([shape[0] for _, shape in rule.parts])
            for (name, shape), piece in zip(rule.parts, pieces, strict=True):
                result[name] = piece.reshape(shape)
    return result


def load_foreign(config: PolicyConfig, path: Path, *, dtype: torch.dtype = torch.float32) -> Pi05:
    """Reads a pi0.5 weight file of openpi or LeRobot.

    Wrapping prefixes (``model.``, ``module.``, ``_orig_mod.``) are removed. The embedding is ``embed_tokens`` where the
    file has it, else the language model's head (they are tied in openpi; in LeRobot's files the head is stale). Tensors
    without influence on actions are not even read.

    Args:
        config: Sizes, which must be the file's.
        path: A ``.safetensors`` file.
        dtype: Of the network.

    Raises:
        CheckpointError: The file is missing or damaged, or tensors are unknown, missing or of another shape.
    """
    with _opened(path) as file:
        stored: dict[str, str] = {}
        for key in list(file.keys()):
            name = _WRAPPERS.sub("", key)
            if name in stored:
                raise CheckpointError(f"{path} holds {name} twice, as {stored[name]} and as {key}; remove one of them")
            stored[name] = key
        if EMBEDDING not in stored and VLM_HEAD in stored:
            stored[EMBEDDING] = stored[VLM_HEAD]
        rules = foreign_rules(config)
        expected = {name: shape for rule in rules for name, shape in rule.parts}
        unused = unused_foreign_names(config)
        found = {name: tuple(file.get_slice(key).get_shape()) for name, key in stored.items() if name not in unused}
        check_tensors(str(path), expected, found)
        tensors = {
            rule.name: torch.cat(
                [file.get_tensor(stored[name]).to(dtype).reshape(shape[0], -1) for name, shape in rule.parts]
            ).view(rule.shape)
            for rule in rules
        }
    return with_tensors(config, tensors)


def with_tensors(config: PolicyConfig, tensors: Mapping[str, Tensor]) -> Pi05:
    """A network that takes over tensors, by our names, without copying them."""
    model = Pi05.blank(config)
    model.load_state_dict(tensors, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def read_tensors(path: Path, expected: Mapping[str, Shape], *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Reads a safetensors file that must hold exactly the expected tensors.

    Args:
        path: The file.
        expected: Shape of each tensor.
        dtype: Of the result.

    Raises:
        CheckpointError: The file is missing or damaged, or tensors are unknown, missing or of another shape.
    """
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
        check_tensors(str(path), expected, found)
        return {name: file.get_tensor(name).to(dtype) for name in expected}


def check_tensors(where: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Compares names and shapes.

    Raises:
        CheckpointError: Lists what is missing, unknown and misshapen, all at once.
    """
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    misshapen = sorted(name for name in set(expected) & set(found) if tuple(expected[name]) != tuple(found[name]))
    problems = [
        _listed("missing", missing, lambda name: name),
        _listed("unknown", unknown, lambda name: name),
        _listed("of another shape", misshapen, lambda name: f"{name} is {found[name]}, expected {expected[name]}"),
    ]
    if missing or unknown or misshapen:
        raise CheckpointError(
            f"{where} does not fit the network: {'; '.join(text for text in problems if text)}. "
            "Use the config.json that belongs to these weights."
        )


def _listed(kind: str, names: list[str], describe: Callable[[str], str]) -> str:
    if not names:
        return ""
    shown = ", ".join(describe(name) for name in names[:SHOWN])
    return f"{len(names)} tensors {kind} ({shown}{', ...' if len(names) > SHOWN else ''})"


def _opened(path: Path) -> safe_open:
    """Opens a safetensors file for reading."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; give the folder of a complete checkpoint")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy or save it again") from None
