"""Low-rank adapters on the projections of the VLM's language layers.

Source: LoRA (arXiv 2106.09685): ``W x`` becomes ``W x + (alpha / rank) B A x``, A random, B zero at first, W frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from z1.policy.gemma import Vlm, VlmLayer
from z1.seeding import Seeds


class AdaptedLinear(nn.Linear):
    """A projection without bias, and its update.

    Projections that are stacked in one matrix (query, key and value; gate and up) have an update each, of that rank.

    Args:
        base: The projection; its weight is taken over.
        parts: Output features of each of the stacked projections.
        rank: Of each update.
        alpha: The updates are multiplied by ``alpha / rank``.
        rng: Source of A.

    Attributes:
        lora_a: A of all parts, ``[parts * rank, in]``.
        lora_b: B of all parts, ``[out, rank]``.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    _parts: tuple[int, ...]
    _scale: float

    def __init__(
        self, base: nn.Linear, parts: Sequence[int], *, rank: int, alpha: float, rng: np.random.Generator
    ) -> None:
        assert base.bias is None
        assert sum(parts) == base.out_features, (parts, base.out_features)
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight
        self._parts, self._scale = tuple(parts), alpha / rank
        shape = (len(self._parts) * rank, base.in_features)
        start = rng.standard_normal(shape, dtype=np.float32) * np.float32(base.in_features**-0.5)
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.from_numpy(start).to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        inner = functional.linear(x, self.lora_a).chunk(len(self._parts), dim=-1)
        outer = self.lora_b.split(self._parts)
        update = torch.cat([functional.linear(h, b) for h, b in zip(inner, outer, strict=True)], dim=-1)
        return functional.linear(x, self.weight) + self._scale * update

    def merged(self, lora_a: Tensor, lora_b: Tensor) -> Tensor:
        """The one matrix that does the same, float32.

        Args:
            lora_a: This projection's A, or one of a higher precision.
            lora_b: Likewise.
        """
        inner, outer = lora_a.float().chunk(len(self._parts)), lora_b.float().split(self._parts)
        update = torch.cat([b @ a for a, b in zip(inner, outer, strict=True)])
        return self.weight.detach().float() + self._scale * update


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((".lora_a", ".lora_b"))


def add_adapters(vlm: Vlm, *, rank: int, alpha: float, seeds: Seeds) -> None:
    """Adapts query, key, value, output, gate, up and down projections of every layer; what it computes stays the same.

    Args:
        vlm: The language model.
        rank: Of every update.
        alpha: See ``AdaptedLinear``.
        seeds: Source of the streams of A, by layer and projection.
    """
    assert not adapted(vlm), "it has adapters already"
    config = vlm.config
    queries, pairs = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def adapt(base: nn.Linear, parts: Sequence[int], *address: str | int) -> AdaptedLinear:
        return AdaptedLinear(base, parts, rank=rank, alpha=alpha, rng=seeds.rng("lora", *address))

    for number, layer in enumerate(vlm.layers):
        assert isinstance(layer, VlmLayer)
        attention, mlp = layer.attention, layer.mlp
        attention.qkv = adapt(attention.qkv, (queries, pairs, pairs), number, "qkv")
        attention.out = adapt(attention.out, (config.width,), number, "out")
        mlp.gate_up = adapt(mlp.gate_up, (config.mlp, config.mlp), number, "gate_up")
        mlp.down = adapt(mlp.down, (config.width,), number, "down")
    vlm.last.kv = adapt(vlm.last.kv, (pairs, pairs), config.depth - 1, "kv")


def adapted(module: nn.Module) -> dict[str, AdaptedLinear]:
    """The projections with adapters, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, AdaptedLinear)}


@torch.no_grad()
def merged(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's parameters as if it had never had adapters.

    Args:
        module: The network.
        tensors: Its parameters by name, possibly of a higher precision.

    Returns:
        The same without adapters; what they adapted is merged with them, float32 on the CPU.
    """
    result = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for name, part in adapted(module).items():
        result[f"{name}.weight"] = part.merged(tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]).cpu()
    return result
