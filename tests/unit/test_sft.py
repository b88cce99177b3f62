"""Supervised fine-tuning: microbatches, learning rates of the two networks, what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from toy import ToyDemonstrations, toy_policy
from z1.config import SftConfig
from z1.errors import ConfigError
from z1.policy.trainable import is_expert
from z1.train.metrics import MetricsWriter
from z1.train.sft import SftTrainer


def trainer_of(folder: Path, **settings: Any) -> SftTrainer:
    usual: dict[str, Any] = {"dataset": ("toy",), "out": "run", "steps": 20, "batch_size": 16, "warmup_steps": 4}
    config = SftConfig(**{**usual, **settings})
    with MetricsWriter(folder, tensorboard=False, resume=False) as metrics:
        return SftTrainer(config, toy_policy(), [ToyDemonstrations(episodes=8)], folder, metrics)  # type: ignore[arg-type]


def gradient(trainer: SftTrainer) -> tuple[float, dict[str, Tensor], list[int]]:
    """Loss and gradient of one batch, and how many samples each forward pass had."""
    passes: list[int] = []
    handle = trainer.policy.model.action_in.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    index = trainer._batch(0)
    loss = trainer._pass(trainer._frames.observations(index), index, np.random.Generator(np.random.Philox(key=1)))
    handle.remove()
    return loss, {n: p.grad.clone() for n, p in trainer.trained.by_name.items() if p.grad is not None}, passes


@pytest.mark.parametrize("mode", ["joint", "expert", "lora"])
def test_the_gradient_does_not_depend_on_the_microbatch(mode: str, tmp_path: Path) -> None:
    loss, whole, passes = gradient(trainer_of(tmp_path, mode=mode))
    assert passes == [16]
    for microbatch, sizes in ((1, [1] * 16), (7, [7, 7, 2]), (16, [16])):
        part_loss, parts, passes = gradient(trainer_of(tmp_path, mode=mode, microbatch=microbatch))
        assert passes == sizes
        assert part_loss == pytest.approx(loss, rel=1e-5)
        assert parts.keys() == whole.keys()
        for name, value in whole.items():
            assert float((parts[name] - value).norm()) <= 1e-5 * float(value.norm()) + 1e-9, f"{name}, {microbatch}"


def test_the_validation_loss_does_not_depend_on_the_microbatch(tmp_path: Path) -> None:
    losses = [trainer_of(tmp_path, validation_fraction=0.25, microbatch=size)._validation_loss(0) for size in (0, 5)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_recomputed_activations_change_nothing(tmp_path: Path) -> None:
    (loss, plain, _), (same, ours, _) = (
        gradient(trainer_of(tmp_path, recompute_activations=on)) for on in (False, True)
    )
    assert loss == same
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(("settings", "vlm"), [({}, 1.0), ({"vlm_learning_rate": 2e-4}, 0.2), ({"mode": "lora"}, 1.0)])
def test_both_learning_rates_follow_the_schedule(settings: dict[str, Any], vlm: float, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, learning_rate=1e-3, **settings)
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["expert", "vlm"]
    for step, factor in ((0, 0.25), (3, 1.0), (4, 1.0), (20, 0.01)):
        rate = trainer._set_rate(step)
        assert rate == pytest.approx(1e-3 * factor)
        assert trainer.optimizer.param_groups[0]["lr"] == rate
        assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(1e-3 * factor * vlm)


def test_a_smaller_rate_moves_the_vlm_less(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, learning_rate=1e-3, vlm_learning_rate=1e-5, warmup_steps=0, weight_decay=0.0)
    before = {name: tensor.detach().clone() for name, tensor in trainer.trained.by_name.items()}
    trainer._set_rate(0)
    trainer._step(0)
    moved = {True: 0.0, False: 0.0}
    for name, tensor in trainer.trained.by_name.items():
        part = is_expert(name)
        moved[part] = max(moved[part], float((tensor.detach() - before[name]).abs().max()))
    assert moved[True] == pytest.approx(1e-3, rel=0.01), "Adam's first step is the rate"
    assert moved[False] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"microbatch": -1}, "microbatch is -1; it must be at least 0"),
        (
            {"mode": "expert", "vlm_learning_rate": 1e-4},
            "vlm_learning_rate has no effect with mode 'expert'; choose another mode or leave it at 0",
        ),
        ({"lora_alpha": 2.0}, "lora_alpha has no effect with mode 'joint'; choose the mode 'lora' or leave it at 16"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SftConfig(dataset=("d",), out="o", **settings)
    assert str(caught.value) == text
