"""Activation checkpointing: what a layer would keep for its backward pass is computed again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_layer(layer: Callable[..., Any], *arguments: Any, recompute: bool) -> Any:
    """Calls a layer. Values and gradients do not depend on how.

    Args:
        layer: Draws no random numbers.
        arguments: Its arguments.
        recompute: Whether only the arguments are kept for the backward pass; without gradient nothing is kept anyway.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
    return layer(*arguments)
