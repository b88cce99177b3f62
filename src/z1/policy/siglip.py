"""The image encoder: a SigLIP vision transformer without pooling.

Source: SigLIP (arXiv 2303.15343), So400m/14 as PaliGemma (arXiv 2407.07726) uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from z1.policy.config import VisionConfig
from z1.policy.recompute import run_layer

LAYER_NORM_EPS = 1e-6


class VisionLayer(nn.Module):
    """A pre-norm transformer layer with biases and full attention."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.up = nn.Linear(width, config.mlp)
        self.down = nn.Linear(config.mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[N, T, width]`` to tokens of the same shape."""
        count, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class VisionEncoder(nn.Module):
    """Images to tokens: patches, learned positions, layers, final norm."""

    recompute = False
    """Activation checkpointing, see ``run_layer``."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Linear(3 * config.patch * config.patch, config.width)
        self.position = nn.Parameter(torch.empty(config.tokens, config.width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Encodes images.

        Args:
            images: float ``[N, 3, height, width]`` in [-1, 1].

        Returns:
            Tokens ``[N, T, width]``, row by row from the top left patch.
        """
        size, patch = self.config.image_size, self.config.patch
        assert images.shape[1:] == (3, size, size), images.shape
        grid = size // patch
        # A convolution whose stride is its kernel size, as one matrix product.
        patches = images.view(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(patches.reshape(-1, grid * grid, 3 * patch * patch).to(self.patch.weight.dtype))
        x = (x + self.position).to(self.norm.weight.dtype)
        for layer in self.layers:
            x = run_layer(layer, x, recompute=self.recompute)
        return self.norm(x)
