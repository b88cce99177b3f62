"""The tensor names of openpi and LeRobot, and networks made of their files.

Both code bases store the same tensors under the same names; LeRobot's carry a prefix and an embedding of their own, and
openpi stores the embedding as the language model's head. Here projections that read the same input are one matrix; a
``Rule`` says of which foreign tensors each of ours is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from z1.policy.config import PolicyConfig
from z1.policy.pi05 import Pi05
from z1.policy.tensor_files import OnBytes, Shape, TensorFiles, check_tensors

VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model"
LANGUAGE = "paligemma_with_expert.paligemma.model.language_model"
PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear"
EXPERT = "paligemma_with_expert.gemma_expert.model"
EMBEDDING = f"{LANGUAGE}.embed_tokens.weight"
VLM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")
_KEPT_FLOAT32 = re.compile(
    r"vision\.(?:patch|position)|vlm\..*norm\d\.|expert\.modulation\.|(?:action|time)_(?:in|out)\."
)


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
    return frozenset(dead_foreign_shapes(config))


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


def dead_foreign_shapes(config: PolicyConfig) -> dict[str, Shape]:
    """Shapes of ``unused_foreign_names``, which the other code bases nevertheless insist on."""
    vlm, width = config.vlm, config.vlm.width
    last, queries = f"{LANGUAGE}.layers.{vlm.depth - 1}", vlm.heads * vlm.head_dim
    return {
        f"{last}.self_attn.q_proj.weight": (queries, width),
        f"{last}.self_attn.o_proj.weight": (width, queries),
        f"{last}.mlp.gate_proj.weight": (vlm.mlp, width),
        f"{last}.mlp.up_proj.weight": (vlm.mlp, width),
        f"{last}.mlp.down_proj.weight": (width, vlm.mlp),
        f"{last}.post_attention_layernorm.weight": (width,),
        f"{LANGUAGE}.norm.weight": (width,),
        VLM_HEAD: (vlm.vocab, width),
        EXPERT_HEAD: (vlm.vocab, config.expert.width),
    }


def own_rules(config: PolicyConfig) -> list[Rule]:
    """The rules of a file in our own names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in Pi05.blank(config).state_dict().items()}
    return [Rule(name=name, shape=shape, parts=((name, shape),)) for name, shape in shapes.items()]


def unwrapped(name: str) -> str:
    """A tensor's name without the prefixes of wrappers: ``model.`` (LeRobot), ``module.``, ``_orig_mod.``."""
    return _WRAPPERS.sub("", name)


def is_foreign(names: Iterable[str]) -> bool:
    """Whether names, without wrappers, are those of openpi and LeRobot."""
    return any(name.startswith("paligemma_with_expert.") for name in names)


def choose_embedding(files: TensorFiles) -> None:
    """Gives the embedding its own name where a file holds it only as the language model's head (openpi ties them)."""
    if EMBEDDING not in files.tensors and VLM_HEAD in files.tensors:
        files.tensors[EMBEDDING] = files.tensors[VLM_HEAD]


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of one of our parameters in a network of a given dtype.

    In bfloat16 these stay float32: patches and positions of images, the VLM's norms, the expert's modulation, and the
    projections of actions and times, which see numbers that bfloat16 would spoil.

    Source: openpi ``gemma_pytorch.py`` (``to_bfloat16_for_selected_params``).
    """
    return torch.float32 if _KEPT_FLOAT32.match(name) else dtype


def check_rules(files: TensorFiles, rules: Iterable[Rule], unused: Iterable[str] = ()) -> None:
    """Compares the tensors of files with what rules need.

    Raises:
        CheckpointError: Tensors are missing, unknown or of another shape, all in one message.
    """
    ignored = set(unused)
    expected = {name: shape for rule in rules for name, shape in rule.parts}
    check_tensors(files.where, expected, {name: shape for name, shape in files.shapes.items() if name not in ignored})


def read_into(
    parameters: Mapping[str, Tensor], files: TensorFiles, rules: Iterable[Rule], on_bytes: OnBytes | None = None
) -> None:
    """Overwrites parameters, by our names, with the tensors of files, one tensor in memory at a time.

    Raises:
        CheckpointError: A file is damaged.
    """
    rules = list(rules)
    total = sum(files.tensors[name].nbytes for rule in rules for name, _ in rule.parts)
    done = 0
    for rule in rules:
        pieces = parameters[rule.name].detach().split([shape[0] for _, shape in rule.parts])
        for (name, _), piece in zip(rule.parts, pieces, strict=True):
            files.copy(name, piece)
            done += files.tensors[name].nbytes
            if on_bytes is not None:
                on_bytes(done, total)
    files.close()


def read_model(
    config: PolicyConfig,
    files: TensorFiles,
    rules: Iterable[Rule],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_bytes: OnBytes | None = None,
) -> Pi05:
    """A network with the tensors of files, which were checked before.

    Args:
        config: Sizes.
        files: The tensors.
        rules: Which of them make which parameter.
        dtype: Of the network, see ``parameter_dtype``.
        device: Of the network.
        on_bytes: Told about progress.

    Raises:
        CheckpointError: A file is damaged.
    """
    rules = list(rules)
    model = Pi05.blank(config)
    tensors = {
        rule.name: torch.empty(rule.shape, dtype=parameter_dtype(rule.name, dtype), device=device) for rule in rules
    }
    read_into(tensors, files, rules, on_bytes)
    model.load_state_dict(tensors, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def load_foreign(config: PolicyConfig, path: Path, *, dtype: torch.dtype = torch.float32) -> Pi05:
    """Reads a pi0.5 weight file of openpi or LeRobot.

    Wrapping prefixes (``model.``, ``module.``, ``_orig_mod.``) are removed. The embedding is ``embed_tokens`` where the
    file has it, else the language model's head (they are tied in openpi; in LeRobot's files the head is stale). Tensors
    without influence on actions are not even read.

    Args:
        config: Sizes, which must be the file's.
        path: A ``.safetensors`` file.
        dtype: Of the network, see ``parameter_dtype``.

    Raises:
        CheckpointError: The file is missing or damaged, or tensors are unknown, missing or of another shape.
    """
    files = TensorFiles(str(path), [path], unwrapped)
    choose_embedding(files)
    rules = foreign_rules(config)
    check_rules(files, rules, unused_foreign_names(config))
    return read_model(config, files, rules, dtype=dtype)
