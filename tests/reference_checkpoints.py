"""Checkpoint directories as LeRobot and openpi write them, small and with random weights.

Written from the reference projects' file layouts, on purpose without any code of z1: z1's own exporter could be wrong
in the same way as its importer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

PALIGEMMA = "paligemma_with_expert.paligemma"
EXPERT = "paligemma_with_expert.gemma_expert"
EMBEDDING = f"{PALIGEMMA}.model.language_model.embed_tokens.weight"
HEAD = f"{PALIGEMMA}.lm_head.weight"
TOKENIZER = Path(__file__).parents[1] / "src/z1/policy/assets/tiny_tokenizer.model"
STATE_DIM, ACTION_DIM = 3, 4
CAMERAS = ("front", "wrist")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Sizes; every one differs from every other where the architecture allows it."""

    vision: int = 24
    vision_layers: int = 2
    vision_mlp: int = 40
    patch: int = 7
    image: int = 14
    vlm: int = 32
    layers: int = 2
    vlm_mlp: int = 48
    heads: int = 8
    head_dim: int = 6
    vocab: int = 520
    expert: int = 16
    expert_mlp: int = 28
    action: int = 8


TINY = Dims()


def shapes(d: Dims = TINY) -> dict[str, tuple[int, ...]]:
    """Every tensor of an openpi file, and the embedding's second name."""
    tower = f"{PALIGEMMA}.model.vision_tower.vision_model"
    result: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.patch_embedding.weight": (d.vision, 3, d.patch, d.patch),
        f"{tower}.embeddings.patch_embedding.bias": (d.vision,),
        f"{tower}.embeddings.position_embedding.weight": ((d.image // d.patch) ** 2, d.vision),
        f"{tower}.post_layernorm.weight": (d.vision,),
        f"{tower}.post_layernorm.bias": (d.vision,),
        f"{PALIGEMMA}.model.multi_modal_projector.linear.weight": (d.vlm, d.vision),
        f"{PALIGEMMA}.model.multi_modal_projector.linear.bias": (d.vlm,),
        f"{PALIGEMMA}.model.language_model.norm.weight": (d.vlm,),
        EMBEDDING: (d.vocab, d.vlm),
        HEAD: (d.vocab, d.vlm),
        f"{EXPERT}.lm_head.weight": (d.vocab, d.expert),
        f"{EXPERT}.model.norm.dense.weight": (3 * d.expert, d.expert),
        f"{EXPERT}.model.norm.dense.bias": (3 * d.expert,),
        "action_in_proj.weight": (d.expert, d.action),
        "action_in_proj.bias": (d.expert,),
        "action_out_proj.weight": (d.action, d.expert),
        "action_out_proj.bias": (d.action,),
    }
    for name in ("time_mlp_in", "time_mlp_out"):
        result |= {f"{name}.weight": (d.expert, d.expert), f"{name}.bias": (d.expert,)}
    for i in range(d.vision_layers):
        layer = f"{tower}.encoder.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            result |= {f"{layer}.{norm}.weight": (d.vision,), f"{layer}.{norm}.bias": (d.vision,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            result |= {
                f"{layer}.self_attn.{name}.weight": (d.vision, d.vision),
                f"{layer}.self_attn.{name}.bias": (d.vision,),
            }
        result |= {f"{layer}.mlp.fc1.weight": (d.vision_mlp, d.vision), f"{layer}.mlp.fc1.bias": (d.vision_mlp,)}
        result |= {f"{layer}.mlp.fc2.weight": (d.vision, d.vision_mlp), f"{layer}.mlp.fc2.bias": (d.vision,)}
    queries = d.heads * d.head_dim
    for stack, width, mlp in (
        (f"{PALIGEMMA}.model.language_model", d.vlm, d.vlm_mlp),
        (f"{EXPERT}.model", d.expert, d.expert_mlp),
    ):
        for i in range(d.layers):
            layer = f"{stack}.layers.{i}"
            result |= {
                f"{layer}.self_attn.q_proj.weight": (queries, width),
                f"{layer}.self_attn.k_proj.weight": (d.head_dim, width),
                f"{layer}.self_attn.v_proj.weight": (d.head_dim, width),
                f"{layer}.self_attn.o_proj.weight": (width, queries),
                f"{layer}.mlp.gate_proj.weight": (mlp, width),
                f"{layer}.mlp.up_proj.weight": (mlp, width),
                f"{layer}.mlp.down_proj.weight": (width, mlp),
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                if stack.startswith(EXPERT):
                    result[f"{layer}.{norm}.dense.weight"] = (3 * width, width)
                    result[f"{layer}.{norm}.dense.bias"] = (3 * width,)
                else:
                    result[f"{layer}.{norm}.weight"] = (width,)
    return result


def tensors(d: Dims = TINY, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random values, drawn in the order of the names; the head is stale, as in LeRobot's files."""
    rng = np.random.Generator(np.random.Philox(key=7))
    return {
        name: torch.from_numpy(rng.normal(0, 0.2, shape).astype(np.float32)).to(dtype)
        for name, shape in sorted(shapes(d).items())
    }


def statistics() -> dict[str, dict[str, list[float]]]:
    """Statistics of state and action whose numbers are all different, and exact in float32."""
    result = {}
    for name, dim in (("state", STATE_DIM), ("action", ACTION_DIM)):
        base = np.arange(dim) / 8 + (0.5 if name == "action" else 0.0)
        vectors = {"mean": base, "std": base + 0.5, "q01": base - 1, "q99": base + 1, "min": base - 2, "max": base + 2}
        result[name] = {field: [float(x) for x in vector] for field, vector in vectors.items()}
    return result


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4))


def edit_json(path: Path, **changes: Any) -> None:
    """Changes top-level values of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: item for key, item in value.items() if item is not None})


def write_openpi(
    folder: Path, d: Dims = TINY, *, config: bool = True, asset: str = "physical-intelligence/lab"
) -> Path:
    """``model.safetensors`` of ``save_model`` (the embedding under the head's name), config and norm_stats."""
    folder.mkdir(parents=True)
    values = tensors(d)
    values[HEAD] = values.pop(EMBEDDING)
    save_file(values, folder / "model.safetensors", metadata={EMBEDDING: HEAD})
    if config:
        names = {"paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m", "precision": "float32"}
        write_json(folder / "config.json", {"action_dim": d.action, "action_horizon": 6, **names})
    stats = {
        name: {field: vector for field, vector in entry.items() if field not in ("min", "max")}
        for name, entry in (("state", statistics()["state"]), ("actions", statistics()["action"]))
    }
    place = folder / "assets" / asset
    place.mkdir(parents=True)
    write_json(place / "norm_stats.json", {"norm_stats": stats})
    return folder


FULL = Dims(
    vision=1152,
    vision_layers=27,
    vision_mlp=4304,
    patch=14,
    image=224,
    vlm=2048,
    layers=18,
    vlm_mlp=16384,
    head_dim=256,
    vocab=257152,
    expert=1024,
    expert_mlp=4096,
    action=32,
)
"""pi0.5 as published."""


def write_random(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> None:
    """A bfloat16 safetensors file of any size with little memory: one block of random numbers again and again."""
    block = torch.empty(2**22).normal_(std=0.02, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)
    data = block.view(torch.uint8).numpy().tobytes()
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            whole, rest = divmod(2 * prod(shape), len(data))
            for _ in range(whole):
                file.write(data)
            file.write(data[:rest])


def write_lerobot(
    folder: Path, d: Dims = TINY, *, mode: str = "QUANTILES", tokenizer: bool = True, weights: bool = True
) -> Path:
    """What ``PI05Policy.save_pretrained`` and the processors' ``save_pretrained`` leave in a directory (0.6)."""
    folder.mkdir(parents=True)
    if weights:
        save_file(
            {f"model.{name}": tensor for name, tensor in tensors(d).items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
    images = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, d.image, d.image]} for name in CAMERAS}
    state = {"observation.state": {"type": "STATE", "shape": [STATE_DIM]}}
    action = {"action": {"type": "ACTION", "shape": [ACTION_DIM]}}
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    write_json(
        folder / "config.json",
        {
            "type": "pi05",
            "n_obs_steps": 1,
            "input_features": {**images, **state},
            "output_features": action,
            "device": "cpu",
            "use_peft": False,
            "paligemma_variant": "gemma_2b",
            "action_expert_variant": "gemma_300m",
            "dtype": "float32",
            "chunk_size": 6,
            "n_action_steps": 6,
            "use_visual_memory": False,
            "max_state_dim": d.action,
            "max_action_dim": d.action,
            "num_inference_steps": 10,
            "min_period": 0.004,
            "max_period": 4.0,
            "use_relative_actions": False,
            "image_resolution": [d.image, d.image],
            "empty_cameras": 0,
            "tokenizer_max_length": 48,
            "normalization_mapping": norm_map,
        },
    )
    flat = {
        f"{key}.{field}": torch.tensor(vector)
        for key, name in (("observation.state", "state"), ("action", "action"))
        for field, vector in statistics()[name].items()
    }
    before = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    after = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    for file in (before, after):
        save_file(flat, folder / file)
    normal = {"eps": 1e-08, "features": {**images, **state, **action}, "norm_map": norm_map}
    text = {
        "max_length": 48,
        "task_key": "task",
        "padding_side": "right",
        "tokenizer_name": "google/paligemma-3b-pt-224",
    }
    token_step: dict[str, Any] = {"registry_name": "tokenizer_processor", "config": text}
    if tokenizer:
        text["tokenizer_name"] = "tokenizer"
        token_step["artifacts"] = {"tokenizer_name": "tokenizer"}
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    pipeline: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "relative_actions_processor", "config": {"enabled": False}},
        {"registry_name": "normalizer_processor", "config": normal, "state_file": before},
        {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}},
        token_step,
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    write_json(folder / "policy_preprocessor.json", {"name": "policy_preprocessor", "steps": pipeline})
    back = [
        {"registry_name": "unnormalizer_processor", "config": {**normal, "features": action}, "state_file": after},
        {"registry_name": "absolute_actions_processor", "config": {"enabled": False}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    write_json(folder / "policy_postprocessor.json", {"name": "policy_postprocessor", "steps": back})
    return folder


def shard(folder: Path, pieces: int = 3) -> None:
    """Splits ``model.safetensors`` into several files with an index."""
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    names = sorted(values := load_file(file))
    weight_map = {}
    for i in range(pieces):
        part = f"model-{i + 1:05d}-of-{pieces:05d}.safetensors"
        save_file({name: values[name] for name in names[i::pieces]}, folder / part)
        weight_map |= dict.fromkeys(names[i::pieces], part)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": weight_map})
    file.unlink()
