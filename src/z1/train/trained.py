"""The weights that training changes: in float32, whatever the network computes in.

In bfloat16 the network's own parameters are what it computes with. Of those that train, a float32 master is kept, which
the gradients are summed into and the optimizer steps; after every step the network gets the masters, rounded. A small
learning rate would vanish in bfloat16 weights: 5e-6 is less than the distance between neighbours of most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from z1.config import Precision
from z1.errors import CheckpointError
from z1.policy.lora import adapted, add_adapters, merged
from z1.policy.pi05 import Pi05
from z1.policy.policy import Policy
from z1.policy.trainable import parameter_groups
from z1.policy.weights import parameter_dtype
from z1.seeding import Seeds

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def settled_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """``auto`` made definite: bfloat16 on a GPU, float32 on a CPU."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" else "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Low-rank adapters to add, see ``add_adapters``.

    Attributes:
        rank: Of every update.
        alpha: Scale times rank.
        seeds: Source of their first values.
    """

    rank: int
    alpha: float
    seeds: Seeds


def adapters_of(mode: str, rank: int, alpha: float, seeds: Seeds) -> Adapters | None:
    """The adapters that settings ask for; None in other modes than ``lora``."""
    return Adapters(rank=rank, alpha=alpha, seeds=seeds) if mode == "lora" else None


class TrainedWeights:
    """What an optimizer steps, and the network that follows.

    The network is brought to the precision's dtypes (see ``parameter_dtype``), its frozen parts as well; a parameter
    that trains and computes in float32 is its own master.

    Args:
        model: The network; its parameters' dtype and ``requires_grad`` are set, and in mode ``lora`` its VLM is given
            adapters.
        mode: What trains, see ``parameter_groups``.
        precision: What the network computes in.
        learning_rate: Of the action expert.
        vlm_learning_rate: Of the VLM, where it trains.
        adapters: Of mode ``lora``.

    Attributes:
        groups: Optimizer groups of float32 tensors; each with ``params``, ``lr`` and ``name``.
    """

    def __init__(
        self,
        model: Pi05,
        mode: str,
        *,
        precision: Precision,
        learning_rate: float,
        vlm_learning_rate: float,
        adapters: Adapters | None = None,
    ) -> None:
        assert (mode == "lora") == (adapters is not None), mode
        if adapters is not None:
            add_adapters(model.vlm, rank=adapters.rank, alpha=adapters.alpha, seeds=adapters.seeds)
        self._model = model
        self._masters: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        groups = parameter_groups(model, mode, learning_rate=learning_rate, vlm_learning_rate=vlm_learning_rate)
        compute = COMPUTE_DTYPES[settled_precision(precision, model.device)]
        stepped: dict[int, Tensor] = {}
        for name, parameter in model.named_parameters():
            dtype = parameter_dtype(name, compute)
            if parameter.requires_grad and dtype != torch.float32:
                master = parameter.detach().float().clone()
                self._masters[name] = stepped[id(parameter)] = master
                parameter.register_post_accumulate_grad_hook(_Collect(master))
            parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                self._trained[name] = stepped.setdefault(id(parameter), parameter)
        self.groups: list[dict[str, Any]] = [
            {**group, "params": [stepped[id(parameter)] for parameter in group["params"]]} for group in groups
        ]

    @property
    def by_name(self) -> dict[str, Tensor]:
        """What trains, float32, by the parameters' names."""
        return self._trained

    @torch.no_grad()
    def publish(self) -> None:
        """Gives the network the masters, rounded; to be called whenever they have changed."""
        for name, master in self._masters.items():
            self._model.get_parameter(name).copy_(master)

    def tensors(self) -> dict[str, Tensor]:
        """The whole network as a policy's folder holds it: masters in place of what was rounded, adapters merged."""
        return merged(self._model, self._own())

    def state(self) -> dict[str, Tensor]:
        """What such a folder cannot give back: adapters, and what they adapt. By name; empty without adapters."""
        own, parts = self._own(), adapted(self._model)
        return {f"{name}.{kind}": own[f"{name}.{kind}"] for name in parts for kind in ("weight", "lora_a", "lora_b")}

    @torch.no_grad()
    def load(self, policy: Policy, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``tensors`` and ``state`` gave.

        Args:
            policy: The policy of the network.
            folder: A policy's folder with ``tensors``.
            state: By name.

        Raises:
            CheckpointError: They are missing, damaged or of another size.
        """
        own, apart = self._own(), self.state()
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in apart.items()}:
            raise CheckpointError(f"the adapters beside {folder} are not those of this run; use an older checkpoint")
        policy.load_weights(folder, into={name: tensor for name, tensor in own.items() if name not in apart})
        for name, tensor in apart.items():
            tensor.copy_(state[name])
        self.publish()

    def _own(self) -> dict[str, Tensor]:
        """Every parameter by name, masters in place of what was rounded; the tensors themselves."""
        return {**self._model.state_dict(), **self._masters}


class _Collect:
    """Adds a parameter's gradient to its master's, in float32, as soon as a backward pass has made it."""

    def __init__(self, master: Tensor) -> None:
        self._master = master

    def __call__(self, parameter: Parameter) -> None:
        assert parameter.grad is not None
        if self._master.grad is None:
            self._master.grad = parameter.grad.float()
        else:
            self._master.grad.add_(parameter.grad)
        parameter.grad = None
