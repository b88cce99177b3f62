"""Full-state checkpoints: a policy folder, the optimizer as safetensors, everything else as JSON. Atomic, never
pickled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from z1.errors import CheckpointError
from z1.files import atomic_folder, read_json, write_json
from z1.policy.policy import Policy
from z1.train.trained import TrainedWeights

FORMAT = "z1.training-state/3"
ADAPTERS_FILE = "adapters.safetensors"


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Where a training run stands, besides weights and optimizer.

    Attributes:
        step: Next iteration (RL) or step (SFT).
        best: Best validation value so far, or None before the first validation.
        best_step: Iteration or step of ``best``.
        totals: Cumulative counters by metric name.
    """

    step: int
    best: float | None
    best_step: int
    totals: dict[str, float]


def save_checkpoint(
    path: Path,
    policy: Policy,
    trained: TrainedWeights,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    *,
    extra_tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes ``path``, replacing an older checkpoint there in one move.

    Args:
        path: Folder of the checkpoint.
        policy: Sizes and processor of the policy folder ``policy/``, which every command can load.
        trained: Its weights; adapters are merged there, and lie in ``adapters.safetensors`` as well.
        optimizer: Its tensors go to ``optimizer.safetensors``.
        state: Everything else.
        extra_tensors: Further tensors, for example averaged weights, kept in ``extra.safetensors``.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    tensors, groups = _flatten(optimizer.state_dict())
    with atomic_folder(path, replace=True) as folder:
        policy.save(folder / "policy", tensors=trained.tensors())
        if adapters := trained.state():
            save_file({k: v.contiguous() for k, v in adapters.items()}, folder / ADAPTERS_FILE)
        save_file(tensors, folder / "optimizer.safetensors")
        save_file({k: v.contiguous() for k, v in (extra_tensors or {}).items()}, folder / "extra.safetensors")
        write_json(folder / "state.json", {"format": FORMAT, "optimizer_groups": groups, **asdict(state)})


def load_checkpoint(
    path: Path, policy: Policy, trained: TrainedWeights, optimizer: torch.optim.Optimizer
) -> tuple[TrainingState, dict[str, torch.Tensor]]:
    """Puts a checkpoint back into a policy and its optimizer, bit for bit.

    Args:
        path: Folder that ``save_checkpoint`` wrote.
        policy: Policy of the same shape; its weights are overwritten.
        trained: What trains of it, likewise.
        optimizer: Optimizer over the same parameters; its state is overwritten.

    Returns:
        The training state and the extra tensors.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or of another shape.
    """
    data = read_json(path / "state.json", CheckpointError)
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path / 'state.json'} has format {found!r}; expected {FORMAT!r}")
    trained.load(policy, path / "policy", _read(path / ADAPTERS_FILE) if (path / ADAPTERS_FILE).exists() else {})
    tensors, extra = _read(path / "optimizer.safetensors"), _read(path / "extra.safetensors")
    try:
        optimizer.load_state_dict(_unflatten(tensors, data["optimizer_groups"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"optimizer state in {path} does not fit the policy: {error}") from error
    try:
        state = TrainingState(
            step=int(data["step"]), best=data["best"], best_step=int(data["best_step"]), totals=dict(data["totals"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / 'state.json'} is incomplete: {error}; use an older checkpoint") from error
    return state, extra


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        kind = "optimizer state" if path.stem == "optimizer" else f"{path.stem} tensors"
        raise CheckpointError(f"{kind} in {path.parent} cannot be read: {error}; use an older checkpoint") from error


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Splits an optimizer's state into named tensors and plain values."""
    tensors = {
        f"{parameter}.{name}": value.contiguous()
        for parameter, entries in state["state"].items()
        for name, value in entries.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, state["param_groups"]


def _unflatten(tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The inverse of ``_flatten``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    groups = [{**group, "betas": tuple(group["betas"])} if "betas" in group else group for group in groups]
    return {"state": state, "param_groups": groups}
