"""Which parameters train, and with which learning rate."""

from __future__ import annotations

from typing import Any

from torch.nn import Parameter

from z1.config import TrainingMode
from z1.errors import UnknownNameError
from z1.policy.lora import is_adapter
from z1.policy.pi05 import Pi05

MODES: tuple[TrainingMode, ...] = ("expert", "joint", "joint_frozen_vision", "lora")

EXPERT_PARTS = ("expert.", "action_in.", "action_out.", "time_in.", "time_out.")
VISION_PART = "vision."


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the action expert, its projections or the time network; the rest is the VLM."""
    return name.startswith(EXPERT_PARTS)


def parameter_groups(model: Pi05, mode: str, *, learning_rate: float, vlm_learning_rate: float) -> list[dict[str, Any]]:
    """Freezes what a mode does not train and returns the rest as optimizer groups.

    ``expert``: the action expert. ``joint``: everything. ``joint_frozen_vision``: everything but the image encoder;
    the projector from image to text features trains. ``lora``: the action expert and the VLM's adapters, which must be
    there (see ``add_adapters``).

    Args:
        model: The network; ``requires_grad`` of every parameter is set.
        mode: One of ``MODES``.
        learning_rate: Of the action expert.
        vlm_learning_rate: Of the rest.

    Returns:
        The expert's group first, then the VLM's when it trains; each with ``params``, ``lr`` and ``name``.

    Raises:
        UnknownNameError: The mode is not known.
    """
    if mode not in MODES:
        raise UnknownNameError("training mode", mode, MODES)
    expert: list[Parameter] = []
    vlm: list[Parameter] = []
    for name, parameter in model.named_parameters():
        trains = (
            is_expert(name)
            or mode == "joint"
            or (mode == "joint_frozen_vision" and not name.startswith(VISION_PART))
            or (mode == "lora" and is_adapter(name))
        )
        parameter.requires_grad_(trains)
        if trains:
            (expert if is_expert(name) else vlm).append(parameter)
    groups = [{"params": expert, "lr": learning_rate, "name": "expert"}]
    if vlm:
        groups.append({"params": vlm, "lr": vlm_learning_rate, "name": "vlm"})
    return groups
