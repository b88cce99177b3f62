"""How action tokens attend to a prefix: three layouts of its keys and values, one result.

``JoinedPast`` joins prefix and action tokens anew in every layer; differentiable. ``AppendedPast`` has room for the
action tokens behind the prefix and writes them in place. ``SharedPast`` attends to prefix and action tokens in two
parts under one softmax, so that several rows need one copy of their common prefix; differentiable unless fused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from z1.policy.config import VlmConfig
from z1.policy.gemma import Rotary, attend, mask_bias, rotary


def suffix_table(mask: Tensor | None, length: int, horizon: int, head_dim: int, device: torch.device) -> Rotary:
    """Rotary table of the action tokens, which follow the prefix tokens that count.

    Args:
        mask: bool ``[B, L]``, or None when all prefix tokens count.
        length: L.
        horizon: H.
        head_dim: Dims of a head.
        device: Of the table.
    """
    steps = torch.arange(horizon, device=device)[None]
    return rotary(steps + (length if mask is None else mask.sum(1, keepdim=True)), head_dim)


class JoinedPast:
    """One prefix per row; keys and values are joined with those of the action tokens in every layer."""

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor | None, horizon: int, layout: VlmConfig) -> None:
        """Takes the prefix as it is.

        Args:
            keys: ``[B, depth, L, kv_heads * head_dim]``.
            values: As the keys.
            mask: bool ``[B, L]``, or None when all prefix tokens count.
            horizon: H.
            layout: Of the attention.
        """
        batch, depth, length, _ = keys.shape
        shape = (batch, depth, length, layout.kv_heads, layout.head_dim)
        self.table = suffix_table(mask, length, horizon, layout.head_dim, keys.device)
        self._keys, self._values = keys.view(shape).unbind(1), values.view(shape).unbind(1)
        self._bias = None if mask is None else functional.pad(mask_bias(mask), (0, horizon))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``z1.policy.gemma.Past``."""
        key = torch.cat((self._keys[layer].to(key.dtype), key), dim=1)
        value = torch.cat((self._values[layer].to(value.dtype), value), dim=1)
        return attend(query, key, value, self._bias)


class AppendedPast:
    """One prefix per row, with room behind it for the action tokens; nothing is joined. Not differentiable."""

    def __init__(
        self,
        layout: VlmConfig,
        *,
        rows: int,
        length: int,
        horizon: int,
        masked: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocates; ``fill`` puts prefixes in.

        Args:
            layout: Of the attention.
            rows: B.
            length: L, most prefix tokens.
            horizon: H.
            masked: Whether prefixes may be shorter or have tokens that do not count.
            dtype: Of keys and values.
            device: Of everything.
        """
        total = length + horizon
        shape = (rows, layout.depth, total, layout.kv_heads, layout.head_dim)
        self._head_dim, self._horizon, self._prefix = layout.head_dim, horizon, length
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._bias = torch.zeros(rows, 1, 1, total, dtype=dtype, device=device) if masked else None
        cos, sin = suffix_table(None, length, horizon, layout.head_dim, device)
        self.table = (cos.repeat(rows, 1, 1, 1), sin.repeat(rows, 1, 1, 1)) if masked else (cos, sin)

    def fill(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """Puts prefixes in, in place of those before.

        Args:
            keys: ``[B, depth, L, kv_heads * head_dim]``; L may be smaller only in a masked past.
            values: As the keys.
            mask: bool ``[B, L]``, or None when all of these tokens count.
        """
        length = keys.shape[2]
        _put(self._keys[:, :, : self._prefix], keys)
        _put(self._values[:, :, : self._prefix], values)
        if self._bias is None:
            assert mask is None, "a past without mask takes prefixes of which every token counts"
            assert length == self._prefix, (length, self._prefix)
            return
        self._bias.fill_(float("-inf"))
        self._bias[..., :length] = 0.0 if mask is None else mask_bias(mask).to(self._bias.dtype)
        self._bias[..., self._prefix :] = 0.0
        table = suffix_table(mask, length, self._horizon, self._head_dim, keys.device)
        for ours, theirs in zip(self.table, table, strict=True):
            ours.copy_(theirs)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``z1.policy.gemma.Past``."""
        keys, values = self._keys[:, layer], self._values[:, layer]
        keys[:, self._prefix :].copy_(key)
        values[:, self._prefix :].copy_(value)
        return attend(query, keys, values, self._bias)


class SharedPast:
    """Prefixes that G rows each have in common: row ``i`` has prefix ``i // G``."""

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        rows: int,
        horizon: int,
        layout: VlmConfig,
        *,
        fused: bool = False,
    ) -> None:
        """Takes the prefixes as they are.

        Args:
            keys: ``[P, depth, L, kv_heads * head_dim]``.
            values: As the keys.
            mask: bool ``[P, L]``, or None when all prefix tokens count.
            rows: B, a multiple of P.
            horizon: H.
            layout: Of the attention.
            fused: Whether attention kernels are used that write no scores, where there are any; not differentiable.
        """
        prefixes, depth, length, _ = keys.shape
        assert rows % prefixes == 0, (rows, prefixes)
        shape = (prefixes, depth, length, layout.kv_heads, layout.head_dim)
        self._horizon, self._layout, self._members = horizon, layout, rows // prefixes
        self._fused = fused
        self._keys, self._values = keys.view(shape), values.view(shape)
        self._bias = None if mask is None else mask_bias(mask)
        self.table = self._suffix_table(mask, length, keys.device)

    def _suffix_table(self, mask: Tensor | None, length: int, device: torch.device) -> Rotary:
        cos, sin = suffix_table(mask, length, self._horizon, self._layout.head_dim, device)
        if mask is None:
            return cos, sin
        return cos.repeat_interleave(self._members, 0), sin.repeat_interleave(self._members, 0)

    def fill(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """Puts other prefixes in, in place of those before; only for a past that was made with a mask.

        Args:
            keys: ``[P, depth, L, kv_heads * head_dim]``; L may be smaller than before.
            values: As the keys.
            mask: bool ``[P, L]``, or None when all of these tokens count.
        """
        assert self._bias is not None
        length = keys.shape[2]
        if mask is None:
            mask = torch.ones(len(keys), length, dtype=torch.bool, device=keys.device)
        _put(self._keys, keys)
        _put(self._values, values)
        self._bias.fill_(float("-inf"))
        self._bias[..., :length].copy_(mask_bias(mask))
        for ours, theirs in zip(self.table, self._suffix_table(mask, length, keys.device), strict=True):
            ours.copy_(theirs)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``z1.policy.gemma.Past``."""
        past_key, past_value = self._keys[:, layer].to(key.dtype), self._values[:, layer].to(value.dtype)
        if self._fused and has_fused(query, self._bias):
            return attend_fused(query, past_key, past_value, key, value, self._bias)
        return attend_shared(query, past_key, past_value, key, value, self._bias)


def masked_room(
    layout: VlmConfig,
    *,
    prefixes: int,
    rows: int,
    length: int,
    horizon: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AppendedPast | SharedPast:
    """Memory for P prefixes of up to L tokens, to be filled again and again.

    Args:
        layout: Of the attention.
        prefixes: P; fewer than rows when several rows share one.
        rows: B.
        length: L.
        horizon: H.
        dtype: Of keys and values.
        device: Of everything.
    """
    if prefixes == rows:
        return AppendedPast(layout, rows=rows, length=length, horizon=horizon, masked=True, dtype=dtype, device=device)
    shape = (prefixes, layout.depth, length, layout.kv_heads * layout.head_dim)
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    mask = torch.ones(prefixes, length, dtype=torch.bool, device=device)
    return SharedPast(keys, values, mask, rows, horizon, layout, fused=True)


def _put(room: Tensor, tensor: Tensor) -> None:
    """Copies ``[P, depth, L, ...]`` into room for at least L tokens; the rest becomes zero, since it must be finite."""
    length = tensor.shape[2]
    room[:, :, :length].copy_(tensor.view(*tensor.shape[:3], *room.shape[3:]))
    room[:, :, length:].zero_()


def attend_shared(
    query: Tensor, past_key: Tensor, past_value: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> Tensor:
    """Attention of P * G rows to P prefixes and to themselves, under one softmax.

    The rows of a prefix are folded into the queries' sequence axis: one matrix product reads the prefix once for all.

    Args:
        query: ``[P * G, H, heads, head_dim]``.
        past_key: ``[P, L, kv_heads, head_dim]``.
        past_value: As ``past_key``.
        key: ``[P * G, H, kv_heads, head_dim]``.
        value: As ``key``.
        bias: float32 ``[P, 1, 1, L]``, 0 or -inf, or None when every prefix token counts.

    Returns:
        ``[P * G, H, heads * head_dim]``.
    """
    rows, horizon, heads, dim = query.shape
    prefixes, length, kv_heads, _ = past_key.shape
    members, share = rows // prefixes, heads // kv_heads
    folded = (query * dim**-0.5).view(prefixes, members, horizon, kv_heads, share, dim).permute(0, 3, 1, 2, 4, 5)
    apart = folded.contiguous().view(prefixes, kv_heads, members, horizon * share, dim)
    together = apart.view(prefixes, kv_heads, -1, dim)
    own_key, own_value = (
        x.view(prefixes, members, horizon, kv_heads, dim).permute(0, 3, 1, 2, 4) for x in (key, value)
    )
    past_scores = (together @ past_key.permute(0, 2, 3, 1)).float()
    if bias is not None:
        past_scores = past_scores + bias
    own_scores = (apart @ own_key.transpose(3, 4)).float().view(*past_scores.shape[:3], horizon)
    weights = torch.softmax(torch.cat((past_scores, own_scores), dim=-1), dim=-1).to(query.dtype)
    own_weights = weights[..., length:].reshape(prefixes, kv_heads, members, horizon * share, horizon)
    mixed = weights[..., :length] @ past_value.transpose(1, 2)
    mixed = mixed + (own_weights @ own_value).view(mixed.shape)
    mixed = mixed.view(prefixes, kv_heads, members, horizon, share, dim).permute(0, 2, 3, 1, 4, 5)
    return mixed.reshape(rows, horizon, heads * dim)


def has_fused(query: Tensor, bias: Tensor | None) -> bool:
    """Whether there is a kernel that attends to part of the keys and says how much weight they have."""
    if query.device.type == "cpu":
        return True
    return query.is_cuda and bias is None and query.dtype in (torch.float16, torch.bfloat16)


def attend_fused(
    query: Tensor, past_key: Tensor, past_value: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> Tensor:
    """``attend_shared`` by two fused kernels, whose results are weighted by the sums of their exponentials.

    Arguments and result as of ``attend_shared``; only where ``has_fused``.

    Source: the merging of partial results in ring attention (arXiv 2310.01889).
    """
    rows, horizon, heads, dim = query.shape
    prefixes, kv_heads, share = len(past_key), key.shape[2], heads // key.shape[2]

    def part(count: int, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention of the queries in so many batches: ``[B, H, heads, dim]``, and its weight ``[B, H, heads, 1]``."""
        split = (count, -1, kv_heads, share, dim)
        folded = query.view(split).transpose(1, 2).reshape(count, kv_heads, -1, dim)
        mixed, weight = _partial(folded, keys.transpose(1, 2), values.transpose(1, 2), bias)
        mixed = mixed.reshape(count, kv_heads, -1, share, dim).transpose(1, 2)
        weight = weight.reshape(count, kv_heads, -1, share, 1).transpose(1, 2)
        return mixed.reshape(rows, horizon, heads, dim), weight.reshape(rows, horizon, heads, 1)

    past, past_weight = part(prefixes, past_key, past_value, bias)
    own, own_weight = part(rows, key, value, None)
    return torch.lerp(own, past, torch.sigmoid(past_weight - own_weight).to(own.dtype)).flatten(2)


def _partial(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum of its exponentials."""
    if query.is_cuda:
        mixed, weight, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    else:
        mask = None if bias is None else bias.to(query.dtype)
        mixed, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask)
    return mixed, weight
