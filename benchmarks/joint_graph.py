"""The network as LeRobot and RLinf train it, with z1's weights: what the split graph is compared with.

Prefix and action tokens go through every layer together: one attention product over both with a mask, all cameras and
the whole text width (what is missing is masked), and the VLM's last layer to its end. Only the velocity is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from z1.policy.gemma import VlmLayer, modulate, rotary
from z1.policy.pi05 import ModelInput, Pi05


class JointGraph:
    """A joint forward pass over a network's own modules; the tail that they lack is made up and never matters."""

    def __init__(self, model: Pi05) -> None:
        self.model = model
        weight = model.vlm.last.kv.weight
        with torch.device(model.device):
            self.tail = VlmLayer(model.config.vlm).to(weight.dtype)
        for parameter in self.tail.parameters():
            torch.nn.init.normal_(parameter, std=0.02)

    def freeze(self, frozen: bool) -> None:
        """Whether the tail trains, which the rest of the VLM says for itself."""
        self.tail.requires_grad_(not frozen)

    def velocity(self, inputs: ModelInput, x_t: Tensor, t: Tensor) -> Tensor:
        """The flow's velocity.

        Args:
            inputs: B observations.
            x_t: float32 ``[B, H, D]``.
            t: float32 ``[B]``.

        Returns:
            float32 ``[B, H, D]``.
        """
        model, vlm, expert = self.model, self.model.vlm, self.model.expert
        images = inputs.images.flatten(0, 1)
        if images.dtype == torch.uint8:
            images = images.float() / 255.0 * 2.0 - 1.0
        blocks = model.projector(model.vision(images).to(model.projector.weight.dtype))
        blocks = blocks.view(len(inputs), -1, blocks.shape[-1])
        prefix = torch.cat((blocks, vlm.embed(inputs.tokens).to(blocks.dtype)), dim=1)
        seen = torch.cat(
            (inputs.image_mask.repeat_interleave(model.config.vision.tokens, dim=1), inputs.token_mask), dim=1
        )
        length, horizon = prefix.shape[1], x_t.shape[1]
        mask, table = joint_mask(seen, horizon), self._positions(seen, horizon)
        tables = [tuple(half[:, part] for half in table) for part in (slice(0, length), slice(length, None))]

        x = model.action_in(x_t).to(expert.dtype)
        parts = model.modulation(t).view(-1, expert.norms, 3, 1, x.shape[-1])
        scale, shift, gate = (1.0 + parts[:, :, 0]).unbind(1), parts[:, :, 1].unbind(1), parts[:, :, 2].unbind(1)
        for i, layer in enumerate(expert.layers):
            first = self._prefix_layer(i, prefix, tables[0])
            second = layer.attention.project(modulate(x, scale[2 * i], shift[2 * i]), tables[1])
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
            mixed = eager_attention(query, key, value, mask)
            own = self.tail if i == len(vlm.layers) else vlm.layers[i]
            prefix = prefix + own.attention.out(mixed[:, :length])
            prefix = prefix + own.mlp(own.norm2(prefix))
            x = torch.addcmul(x, layer.attention.out(mixed[:, length:]).to(x.dtype), gate[2 * i].to(x.dtype))
            branch = layer.mlp(modulate(x, scale[2 * i + 1], shift[2 * i + 1]))
            x = torch.addcmul(x, branch.to(x.dtype), gate[2 * i + 1].to(x.dtype))
        return model.action_out(modulate(x, scale[-1], shift[-1]).float())

    def _prefix_layer(self, i: int, prefix: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        vlm = self.model.vlm
        if i < len(vlm.layers):
            return vlm.layers[i].attention.project(vlm.layers[i].norm1(prefix), table)
        query, _, _ = self.tail.attention.project(self.tail.norm1(prefix), table)
        key, value = vlm.last(prefix, table)
        return query, key, value

    def _positions(self, seen: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        positions = functional.pad(seen.long(), (0, horizon), value=1).cumsum(1) - 1
        return rotary(positions.clamp(min=0), self.model.config.vlm.head_dim)


def joint_mask(seen: Tensor, horizon: int) -> Tensor:
    """bool ``[B, 1, L + H, L + H]``: the prefix sees the prefix, action tokens see everything that counts."""
    length = seen.shape[1]
    keys = functional.pad(seen, (0, horizon), value=True)[:, None, None, :]
    mask = keys.expand(-1, 1, length + horizon, -1).clone()
    mask[:, :, :length, length:] = False
    return mask


def eager_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention with all scores written out, as the references compute it; arguments as of ``gemma.attend``."""
    heads, dim = query.shape[2:]
    key, value = (x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2) for x in (key, value))
    scores = query.transpose(1, 2) @ key.transpose(2, 3) * dim**-0.5
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).flatten(2)
