"""The policy: a pi0.5 network of any size, its sampler, its input and output processing, and its checkpoints.

Modules: ``config`` (sizes and processing), ``siglip``, ``gemma``, ``past`` and ``pi05`` (the network), ``speed`` and
``denoise`` (how it is quick), ``flow`` (pure maths of flow matching and its stochastic sampler), ``sampler`` (chunks
and their log-probs), ``tokenizer``, ``tensor_files`` (safetensors), ``weights`` (tensor names of other code bases),
``trainable`` (what trains), ``policy`` (everything together, with load and save) and ``checkpoints`` (the same from and
to the layouts of LeRobot and openpi).

``load_policy``, ``save_policy``, ``CheckpointOverrides`` and ``Policy`` are to be had from here; torch is imported when
one of them is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from z1.policy.checkpoints.load import load_policy
    from z1.policy.checkpoints.save import save_policy
    from z1.policy.checkpoints.settings import CheckpointOverrides
    from z1.policy.policy import Policy

__all__ = ["CheckpointOverrides", "Policy", "load_policy", "save_policy"]

_HOMES = {
    "CheckpointOverrides": "z1.policy.checkpoints.settings",
    "Policy": "z1.policy.policy",
    "load_policy": "z1.policy.checkpoints.load",
    "save_policy": "z1.policy.checkpoints.save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
