"""The two transformers of pi0.5: the VLM (Gemma) that encodes a prefix, and the action expert that attends to it.

The prefix is bidirectional and never sees the action tokens, so it is computed on its own and only its keys and values
are kept. Of the VLM's last layer nothing else is ever used, and nothing else exists here.

Source: Gemma (arXiv 2403.08295); pi0 (arXiv 2410.24164) for the two experts; openpi for adaptive norms.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from z1.policy.config import ExpertConfig, VlmConfig
from z1.policy.recompute import run_layer

RMS_EPS = 1e-6
ROPE_THETA = 10_000.0

Rotary = tuple[Tensor, Tensor]


def rms_normalise(x: Tensor) -> Tensor:
    """``x / sqrt(mean(x^2) + 1e-6)`` over the last axis, in float32.

    By way of the vector norm, which reads x once; three times faster than the mean of squares in a backward pass.
    """
    wide = x.float()
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
    return wide * torch.rsqrt(mean_square + RMS_EPS)


class RmsNorm(nn.Module):
    """RMS norm with Gemma's convention: the scale is ``1 + weight``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape and dtype."""
        return (rms_normalise(x) * (1.0 + self.weight.float())).to(x.dtype)


@lru_cache(maxsize=16)
def _frequencies(head_dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        return ROPE_THETA**-exponent


def rotary(positions: Tensor, head_dim: int) -> Rotary:
    """Cosine and sine of the rotary embedding's angles.

    Args:
        positions: int64 ``[B, S]``.
        head_dim: Dims of a head.

    Returns:
        Two float32 ``[B, S, 1, head_dim / 2]``.
    """
    angles = positions[:, :, None, None] * _frequencies(head_dim, positions.device)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Applies the rotary embedding: the first half of a head's dims is paired with the second.

    Args:
        x: ``[B, S, heads, head_dim]``.
        table: Of ``rotary``.

    Returns:
        Same shape and dtype as x.
    """
    cos, sin = table
    first, second = x.float().chunk(2, dim=-1)
    turned = (torch.addcmul(first * cos, second, sin, value=-1.0), torch.addcmul(second * cos, first, sin))
    return torch.cat(turned, dim=-1).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention with few key and value heads.

    The query heads that share a key head are folded into the query's sequence axis: no key is expanded, and with one
    key head nothing is transposed either.

    Args:
        query: ``[B, S, heads, head_dim]``.
        key: ``[B, T, kv_heads, head_dim]``.
        value: ``[B, T, kv_heads, head_dim]``.
        bias: ``[B, 1, 1, T]``, 0 or -inf, or None when every key counts.

    Returns:
        ``[B, S, heads * head_dim]``.
    """
    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    share = heads // kv_heads
    folded = query.view(batch, length, kv_heads, share, dim).transpose(1, 2).reshape(batch, kv_heads, -1, dim)
    mixed = functional.scaled_dot_product_attention(
        folded,
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if bias is None else bias.to(folded.dtype),
    )
    return mixed.view(batch, kv_heads, length, share, dim).transpose(1, 2).reshape(batch, length, heads * dim)


def mask_bias(mask: Tensor) -> Tensor:
    """float32 ``[B, 1, 1, T]``, 0 where bool ``[B, T]`` is true and -inf elsewhere."""
    bias = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return bias.masked_fill_(~mask, float("-inf"))[:, None, None, :]


class Past(Protocol):
    """A prefix as the action tokens see it; see ``z1.policy.past`` for its layouts."""

    table: Rotary
    """Rotary table of the action tokens' positions."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of the action tokens to the prefix and to each other.

        Args:
            layer: Number of the layer.
            query: ``[B, H, heads, head_dim]``, rotated.
            key: ``[B, H, kv_heads, head_dim]``, rotated.
            value: ``[B, H, kv_heads, head_dim]``.

        Returns:
            ``[B, H, heads * head_dim]``.
        """
        ...


class GatedMlp(nn.Module):
    """``down(gelu(gate x) * up x)``, gate and up as one matrix product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.gelu(gate, approximate="tanh") * up)


class Attention(nn.Module):
    """Query, key, value and output projections of one layer."""

    def __init__(self, width: int, layout: VlmConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = layout.heads, layout.kv_heads, layout.head_dim
        self.qkv = nn.Linear(width, (layout.heads + 2 * layout.kv_heads) * layout.head_dim, bias=False)
        self.out = nn.Linear(layout.heads * layout.head_dim, width, bias=False)

    def project(self, x: Tensor, table: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query and key, and value.

        Args:
            x: ``[B, S, width]``, normalised.
            table: Rotary table of the positions.

        Returns:
            query ``[B, S, heads, head_dim]``; key and value ``[B, S, kv_heads, head_dim]``.
        """
        batch, length, _ = x.shape
        heads, kv_heads = self.heads, self.kv_heads
        qkv = self.qkv(x).view(batch, length, heads + 2 * kv_heads, self.head_dim)
        turned = rotate(qkv[:, :, : heads + kv_heads], table)
        return turned[:, :, :heads], turned[:, :, heads:], qkv[:, :, heads + kv_heads :]


class VlmLayer(nn.Module):
    """A layer of the VLM."""

    def __init__(self, config: VlmConfig) -> None:
        super().__init__()
        self.norm1 = RmsNorm(config.width)
        self.attention = Attention(config.width, config)
        self.norm2 = RmsNorm(config.width)
        self.mlp = GatedMlp(config.width, config.mlp)

    def forward(self, x: Tensor, table: Rotary, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``[B, L, width]`` to new tokens, and their keys and values ``[B, L, kv_heads, head_dim]``."""
        query, key, value = self.attention.project(self.norm1(x), table)
        x = x + self.attention.out(attend(query, key, value, bias))
        return x + self.mlp(self.norm2(x)), key, value


class VlmLastLayer(nn.Module):
    """What remains of the VLM's last layer: its keys and values."""

    def __init__(self, config: VlmConfig) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim
        self.norm1 = RmsNorm(config.width)
        self.kv = nn.Linear(config.width, 2 * config.kv_heads * config.head_dim, bias=False)

    def forward(self, x: Tensor, table: Rotary) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, L, width]`` to keys and values ``[B, L, kv_heads, head_dim]``."""
        both = self.kv(self.norm1(x)).view(*x.shape[:2], 2, self.kv_heads, self.head_dim)
        return rotate(both[:, :, 0], table), both[:, :, 1]


class Vlm(nn.Module):
    """Token embeddings in, keys and values of every layer out."""

    recompute = False
    """Activation checkpointing, see ``run_layer``."""

    def __init__(self, config: VlmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.width))
        self.layers = nn.ModuleList(VlmLayer(config) for _ in range(config.depth - 1))
        self.last = VlmLastLayer(config)

    def embed(self, tokens: Tensor) -> Tensor:
        """Text tokens int64 ``[B, T]`` to ``[B, T, width]``, multiplied by sqrt(width); image tokens are not."""
        rows = functional.embedding(tokens, self.embedding)
        return rows * torch.full((), self.config.width**0.5, dtype=rows.dtype, device=rows.device)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encodes a prefix.

        Args:
            x: ``[B, L, width]``.
            mask: bool ``[B, L]``, tokens that count, or None when all do. Others take no position.

        Returns:
            Keys (rotated) and values, ``[B, depth, L, kv_heads * head_dim]``.
        """
        batch, length, _ = x.shape
        if mask is None:
            positions, bias = torch.arange(length, device=x.device)[None], None
        else:
            positions, bias = (mask.cumsum(1) - 1).clamp(min=0), mask_bias(mask)
        table = rotary(positions, self.config.head_dim)
        keys, values = [], []
        for layer in self.layers:
            x, key, value = run_layer(layer, x, table, bias, recompute=self.recompute)
            keys.append(key)
            values.append(value)
        key, value = self.last(x, table)
        shape = (batch, self.config.depth, length, self.config.kv_heads * self.config.head_dim)
        return (
            torch.stack([*keys, key], dim=1).view(shape),
            torch.stack([*values, value], dim=1).view(shape),
        )


class ExpertLayer(nn.Module):
    """A layer of the action expert; scale, shift and gate come from outside."""

    def __init__(self, config: ExpertConfig, layout: VlmConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, layout)
        self.mlp = GatedMlp(config.width, config.mlp)


class ActionExpert(nn.Module):
    """The network that turns noisy action tokens into velocity features, given a prefix and a time.

    Every norm is adaptive: ``norm(x) * (1 + scale) + shift``, and a branch's result is multiplied by ``gate``. Scale,
    shift and gate of all norms depend on the time alone; they come from one matrix product, ``modulation``.
    """

    recompute = False
    """Activation checkpointing, see ``run_layer``."""

    def __init__(self, config: ExpertConfig, layout: VlmConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.norms = 2 * layout.depth + 1
        self.modulation = nn.Linear(config.width, self.norms * 3 * config.width)
        self.layers = nn.ModuleList(ExpertLayer(config, layout) for _ in range(layout.depth))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the layers' matrices, which is the one they compute in."""
        return next(self.layers.parameters()).dtype

    @property
    def attention_dtype(self) -> torch.dtype:
        """Dtype of keys and values: that of the layers' matrices, or autocast's where it is on."""
        kind = next(self.layers.parameters()).device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def forward(self, x: Tensor, modulation: Tensor, past: Past) -> Tensor:
        """Runs the expert.

        Args:
            x: ``[B, H, width]``, embedded noisy actions.
            modulation: float32 ``[B or 1, norms * 3 * width]``, of ``self.modulation``.
            past: The prefixes of the B rows.

        Returns:
            ``[B, H, width]``, after the final norm.
        """
        parts = modulation.view(-1, self.norms, 3, 1, x.shape[-1])
        scale, shift, gate = (1.0 + parts[:, :, 0]).unbind(1), parts[:, :, 1].unbind(1), parts[:, :, 2].unbind(1)

        def run(i: int, x: Tensor) -> Tensor:
            layer = self.layers[i]
            assert isinstance(layer, ExpertLayer)
            query, key, value = layer.attention.project(modulate(x, scale[2 * i], shift[2 * i]), past.table)
            branch = layer.attention.out(past.attend(i, query, key, value))
            x = torch.addcmul(x, branch.to(x.dtype), gate[2 * i].to(x.dtype))
            branch = layer.mlp(modulate(x, scale[2 * i + 1], shift[2 * i + 1]))
            return torch.addcmul(x, branch.to(x.dtype), gate[2 * i + 1].to(x.dtype))

        for i in range(len(self.layers)):
            x = run_layer(run, i, x, recompute=self.recompute)
        return modulate(x, scale[-1], shift[-1])


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The adaptive norm, ``norm(x) * scale + shift``, in x's dtype; scale (1 included) and shift broadcast to x."""
    return torch.addcmul(shift, rms_normalise(x), scale).to(x.dtype)
