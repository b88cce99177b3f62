"""How much signal the first update's gradient carries, per objective and way of rolling out, on the same SFT policy.

For each way of rolling out, groups of the same training scenes are collected without any update. Each kept group gives
one gradient of the trainable weights per objective. With n groups, mean gradient m and mean squared norm s,

    signal = (n |m|^2 - s) / (n - 1)      unbiased for the squared norm of the expected gradient
    noise  = s - signal                   expected squared distance of a group's gradient from it
    groups = noise / signal               groups needed until signal and noise are equal

The estimate has an error itself: its standard error over a jackknife of the groups is given, and a signal within two
of them is not told from zero.

    python benchmarks/gradient_noise.py --policy runs/sft --task metaworld/door-open --horizon 150 --out FILE
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from z1.commands import open_pool, policy_folder
from z1.config import RlConfig, RolloutConfig, SimConfig, UpdateConfig
from z1.files import write_json
from z1.machine import cores, cpu_model
from z1.policy.policy import Policy
from z1.rollout.groups import Rollouts, build_training_batch
from z1.seeding import Seeds
from z1.train.metrics import MetricsWriter
from z1.train.objectives import make_objective
from z1.train.trainer import Trainer

ROLLOUTS: dict[str, dict[str, Any]] = {
    "one stochastic step": {},
    "three stochastic steps": {"stochastic_steps": 3},
    "three, the group's initial noise": {"stochastic_steps": 3, "initial_noise": "group"},
    "the same, tree of 6 chunks": {
        "stochastic_steps": 3,
        "initial_noise": "group",
        "plan": "tree",
        "prefix": 6,
    },
    "the same, tree advantages": {
        "stochastic_steps": 3,
        "initial_noise": "group",
        "plan": "tree",
        "prefix": 6,
        "advantage": "tree",
    },
    "three, the group's initial noise, slowest movement counts": {
        "stochastic_steps": 3,
        "initial_noise": "group",
        "likelihood_modes": 1,
    },
    "the same, noise correlated by 0.9": {
        "stochastic_steps": 3,
        "initial_noise": "group",
        "likelihood_modes": 1,
        "noise_correlation": 0.9,
    },
    "three, the group's initial noise, critic": {
        "stochastic_steps": 3,
        "initial_noise": "group",
        "advantage": "critic",
    },
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {"objective": "grpo"},
    "awfm": {"objective": "awfm"},
    "awfm, negative-aware": {"objective": "awfm", "awfm_negative": 1.0},
}


def group_gradients(trainer: Trainer, rollouts: Rollouts, update: UpdateConfig) -> Tensor:
    """float32 ``[n, parameters]``, the gradient of each kept group's summed loss at the weights that acted."""
    model, learner = trainer.policy.model, trainer.learner
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    counted, acting = trainer.policy.counted_dims, trainer.config.acting
    rows = []
    for number, (group, weights) in enumerate(zip(rollouts.kept, trainer.weights(rollouts), strict=True)):
        objective = make_objective(update, acting, trainer.config.rollout, counted_dims=counted, seeds=Seeds(0))
        batch = build_training_batch((group,), [weights], rollouts.ticks, acting.chunk_length)
        batch = objective.select(batch) if batch is not None else None
        if batch is None or not len(batch):
            continue
        index = torch.arange(len(batch))
        objective.begin(model, batch, [index], learner.prefix, ("group", number))
        terms = objective.terms(model, batch, index, learner.prefix(batch), ("group", number))
        gradients = torch.autograd.grad(terms.loss, parameters, allow_unused=True)
        flat = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, parameters, strict=True)]
        rows.append(torch.cat(flat))
    return torch.stack(rows)


def signal_and_noise(gradients: Tensor) -> dict[str, float]:
    """Estimates of the module's text, with a jackknife standard error of the signal."""
    products = (gradients @ gradients.T).double()
    n = len(products)
    pairs = (products.sum() - products.diagonal().sum()).item()
    signal = pairs / (n * (n - 1))
    own = (products.sum(1) - products.diagonal()).tolist()
    left_out = [(pairs - 2 * row) / ((n - 1) * (n - 2)) for row in own]
    mean = sum(left_out) / n
    error = ((n - 1) / n * sum((value - mean) ** 2 for value in left_out)) ** 0.5
    noise = float(products.diagonal().mean()) - signal
    return {"groups": n, "signal": signal, "signal_error": error, "noise": noise, "signal_to_noise": signal / noise}


def main() -> None:
    """Collects, differentiates, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--horizon", type=int, default=200)
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--rollouts", nargs="*", choices=ROLLOUTS, default=list(ROLLOUTS), metavar="NAME")
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES), metavar="NAME")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    results = []
    for name in options.rollouts:
        settings = ROLLOUTS[name]
        config = RlConfig(
            policy=options.policy,
            task=options.task,
            out=options.out,
            sim=SimConfig(hosts=options.hosts, horizon=options.horizon),
            rollout=RolloutConfig(groups=options.groups, max_env_steps=1_000_000, **settings),
        )
        policy = Policy.load(policy_folder(options.policy))
        with open_pool(policy, config.task, config.sim) as pool:
            trainer = Trainer(config, policy, pool, Path(options.out), MetricsWriter(Path(options.out).parent))
            rollouts = trainer.collect(0, config.rollout.prefix)
            trainer.learn_values(rollouts, 0)
        for objective in options.objectives:
            began = time.perf_counter()
            update = replace(config.update, **OBJECTIVES[objective])
            estimate = signal_and_noise(group_gradients(trainer, rollouts, update))
            per_step = estimate["signal_to_noise"] * estimate["groups"] / rollouts.cost.env_steps
            row = {"rollouts": name, "objective": objective, "env_steps": rollouts.cost.env_steps, **estimate}
            results.append({**row, "per_10k_env_steps": 1e4 * per_step, "seconds": time.perf_counter() - began})
            print(
                f"{name:34s} {objective:22s} {rollouts.cost.env_steps:7d} env steps, {estimate['groups']:3.0f} groups: "
                f"signal {estimate['signal']:.3g} +- {estimate['signal_error']:.2g}, noise {estimate['noise']:.3g}, "
                f"ratio {estimate['signal_to_noise']:.4f}",
                flush=True,
            )
    write_json(
        Path(options.out),
        {
            "task": options.task,
            "policy": options.policy,
            "rows": results,
            "machine": {"processor": cpu_model(), "cores": cores()},
        },
    )


if __name__ == "__main__":
    main()
