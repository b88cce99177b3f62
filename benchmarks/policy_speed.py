"""How quick a pi0.5 acts and learns, against the cost model, the reference's joint graph, and LeRobot where installed.

python benchmarks/policy_speed.py --size reduced --out benchmarks/results/policy_speed_cpu.json        # a CPU, minutes
python benchmarks/policy_speed.py --size full --device cuda --out benchmarks/results/policy_speed_gpu.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lerobot_policy
from interleaved import Case, device_limit, measure, surroundings
from joint_graph import JointGraph
from z1.config import Precision
from z1.data.stats import compute_stats
from z1.policy import flow
from z1.policy.config import ExpertConfig, PolicyConfig, ProcessorConfig, VisionConfig, VlmConfig
from z1.policy.cost import UPDATES, CostModel, Device, Kind
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.policy import Policy
from z1.policy.sampler import chunk_log_prob, sample_chunk
from z1.policy.speed import SpeedSettings
from z1.policy.tokenizer import Tokenizer
from z1.policy.trainable import parameter_groups
from z1.policy.weights import parameter_dtype
from z1.train.trained import TrainedWeights

PLAIN = SpeedSettings(trim=False, keep_modulation=False, append_in_place=False, share_prefix=False)
QUICK = SpeedSettings()
RECORDED = SpeedSettings(cuda_graph=True)
COPIED = SpeedSettings(share_prefix=False)
MEMBERS = 16
ACTION_DIM, NOISE_LEVEL, GRID = 7, 0.5, 10
SFT_STEPS: dict[str, Kind] = {
    "SFT step": "split joint",
    "SFT step, activation checkpointing": "split joint checkpointed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A network and the work it gets.

    Attributes:
        config: Sizes of the network.
        cameras: Cameras that exist, of ``slots``.
        slots: Cameras of the checkpoint; the missing ones are masked.
        text: Tokens of a prompt, of ``config.max_tokens``.
        batches: Numbers of chunks that are sampled at a time.
        steps: Denoise steps K.
        horizons: Horizons H.
        update_batch: Chunks of an update.
    """

    config: PolicyConfig
    cameras: int
    slots: int
    text: int
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    horizons: tuple[int, ...]
    update_batch: int

    def cost(self, horizon: int, *, padded: bool = False) -> CostModel:
        """The cost model of a sample; ``padded``: with everything that is masked."""
        cameras, text = (self.slots, self.config.max_tokens) if padded else (self.cameras, self.text)
        return CostModel(config=self.config, cameras=cameras, text=text, horizon=horizon)


FULL = Size(
    config=PolicyConfig.pi05(),
    cameras=2,
    slots=3,
    text=40,
    batches=(1, 16, 64),
    steps=(5, 10),
    horizons=(10, 50),
    update_batch=16,
)
REDUCED = replace(
    FULL,
    config=PolicyConfig(
        vision=VisionConfig(width=96, depth=3, heads=4, mlp=384, patch=14, image_size=84),
        vlm=VlmConfig(width=192, depth=4, mlp=1536, heads=8, kv_heads=1, head_dim=32, vocab=512),
        expert=ExpertConfig(width=96, mlp=384),
        horizon=50,
        action_dim=32,
        max_tokens=52,
    ),
    text=24,
)
TINY = Size(
    config=PolicyConfig.tiny(),
    cameras=2,
    slots=2,
    text=PolicyConfig.tiny().max_tokens // 2,
    batches=(1, 64),
    steps=(4,),
    horizons=(PolicyConfig.tiny().horizon,),
    update_batch=64,
)
MICRO = replace(
    REDUCED,
    config=PolicyConfig(
        vision=VisionConfig(width=32, depth=1, heads=2, mlp=64, patch=14, image_size=28),
        vlm=VlmConfig(width=32, depth=2, mlp=64, heads=8, kv_heads=1, head_dim=16, vocab=512),
        expert=ExpertConfig(width=32, mlp=64),
        horizon=5,
        action_dim=8,
        max_tokens=12,
    ),
    text=6,
    update_batch=4,
    batches=(1, 16),
    steps=(2,),
    horizons=(5,),
)
SIZES = {"full": FULL, "reduced": REDUCED, "tiny": TINY, "micro": MICRO}


def make_policy(size: Size, device: torch.device, dtype: torch.dtype) -> Policy:
    """A policy with random weights, drawn where they stay."""
    model = Pi05.blank(size.config)
    tensors = {
        name: torch.empty(parameter.shape, dtype=parameter_dtype(name, dtype), device=device)
        for name, parameter in model.named_parameters()
    }
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in tensors.items():
        scale = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.02
        tensor.normal_(std=scale * (0.3 if name.startswith("expert.modulation") else 1.0), generator=generator)
        if name.startswith("vision.") and "norm" in name and name.endswith("weight"):
            tensor.add_(1.0)
    model.load_state_dict(tensors, strict=True, assign=True)
    spread = compute_stats(np.linspace(-1, 1, 101)[:, None].repeat(ACTION_DIM, axis=1))
    cameras = tuple(f"camera{i}" for i in range(size.slots))
    processor = ProcessorConfig.of_dataset(cameras=cameras, state_stats=spread, action_stats=spread)
    return Policy(model.requires_grad_(False), processor, Tokenizer.tiny())


class Work:
    """Inputs of every kind, and what is done with them."""

    def __init__(self, size: Size, policy: Policy) -> None:
        self.size, self.model, self.device = size, policy.model, policy.device
        self.generator = torch.Generator(self.device).manual_seed(1)
        self.joint_graph = JointGraph(self.model)

    def inputs(self, rows: int) -> ModelInput:
        """Observations as they come: masked where something is missing."""
        size, device = self.size, self.device
        pixels = (rows, size.slots, 3, size.config.image_size, size.config.image_size)
        seen = torch.arange(size.slots, device=device) < size.cameras
        read = torch.arange(size.config.max_tokens, device=device) < size.text
        tokens = torch.randint(4, 500, (rows, len(read)), generator=self.generator, device=device)
        return ModelInput(
            images=torch.randint(0, 256, pixels, generator=self.generator, dtype=torch.uint8, device=device),
            image_mask=seen.repeat(rows, 1),
            tokens=torch.where(read, tokens, 0),
            token_mask=read.repeat(rows, 1),
        )

    def noise(self, rows: int, horizon: int) -> Tensor:
        """float32 ``[B, H, D]``."""
        return torch.randn(rows, horizon, self.size.config.action_dim, generator=self.generator, device=self.device)

    @torch.no_grad()
    def encode(self, inputs: ModelInput, speed: SpeedSettings) -> PrefixCache:
        """Prefixes."""
        self.model.speed = speed
        return self.model.encode_prefix(inputs)

    def sample(self, prefix: PrefixCache, noise: Tensor, steps: int, speed: SpeedSettings) -> Tensor:
        """Actions."""
        self.model.speed = speed
        return sample_chunk(
            self.model,
            prefix,
            initial_noise=noise,
            denoise_steps=steps,
            noise_level=0.0,
            sde_index=None,
            sde_noise=None,
            executed_steps=noise.shape[1],
            counted_dims=range(ACTION_DIM),
        ).actions

    def act(self, inputs: ModelInput, noise: Tensor, steps: int, speed: SpeedSettings) -> Tensor:
        """From observations to actions."""
        return self.sample(self.encode(inputs, speed), noise, steps, speed)


def acting_cases(
    work: Work, rows: int, steps: int, horizon: int, other: lerobot_policy.LeRobotPolicy | None
) -> list[Case]:
    """From different observations to actions."""
    inputs, noise = work.inputs(rows), work.noise(rows, horizon)
    padded = work.size.cost(horizon, padded=True)
    padded_steps = rows * steps * padded.step()
    own = rows * work.size.cost(horizon).sample(steps)
    cases = [
        Case(
            name="padded, plain",
            run=partial(work.act, inputs, noise, steps, PLAIN),
            flops=rows * padded.sample(steps),
        ),
        Case(name="z1", run=partial(work.act, inputs, noise, steps, QUICK), flops=own),
    ]
    if work.device.type == "cuda":
        run = partial(work.act, inputs, noise, steps, RECORDED)
        cases.append(Case(name="z1, recorded step", run=run, flops=own))
    if other is not None:
        run = partial(other.sample, inputs, noise, steps)
        cases.insert(0, Case(name="LeRobot", run=run, flops=rows * padded.prefix(tail=True) + padded_steps))
    return cases


def member_cases(work: Work, steps: int, horizon: int) -> list[Case]:
    """From one observation to the actions of many members."""
    inputs, noise, cost = work.inputs(1), work.noise(MEMBERS, horizon), work.size.cost(horizon)
    many = ModelInput.concat([inputs] * MEMBERS)
    once = cost.prefix() + MEMBERS * steps * cost.step()
    cases = [
        Case(
            name="each on its own",
            run=partial(work.act, many, noise, steps, QUICK),
            flops=MEMBERS * cost.sample(steps),
        ),
        Case(name="one prefix, copied", run=partial(work.act, inputs, noise, steps, COPIED), flops=once),
        Case(name="one prefix, shared", run=partial(work.act, inputs, noise, steps, QUICK), flops=once),
    ]
    if work.device.type == "cuda":
        run = partial(work.act, inputs, noise, steps, RECORDED)
        cases.append(Case(name="one prefix, shared, recorded step", run=run, flops=once))
    return cases


def acting(work: Work, limit: Device, rounds: int, other: lerobot_policy.LeRobotPolicy | None) -> dict[str, Any]:
    """Inference: different observations, and members of one."""
    size, result = work.size, {}
    for horizon in size.horizons:
        work.model.speed = QUICK
        with work.model.constant_weights():
            for rows, steps in product(size.batches, size.steps):
                cases = acting_cases(work, rows, steps, horizon, other)
                result[f"B={rows} K={steps} H={horizon}"] = measure(cases, rounds, work.device, limit)
            steps = size.steps[-1]
            name = f"{MEMBERS} members of one observation, K={steps} H={horizon}"
            result[name] = measure(member_cases(work, steps, horizon), rounds, work.device, limit)
    return result


class Update:
    """One GRPO update per chunk, forward and backward pass, without the optimizer."""

    def __init__(self, work: Work, horizon: int) -> None:
        rows, device = work.size.update_batch, work.device
        self._work, self.horizon, self.rows = work, horizon, rows
        self.inputs = work.inputs(rows)
        self.x_t, self.x_next = work.noise(rows, horizon), work.noise(rows, horizon)
        self._index = torch.arange(rows, device=device) % (GRID - 1)
        self.times = flow.time_grid(GRID).to(device)[self._index]
        self._executed = torch.ones(rows, horizon, dtype=torch.bool, device=device)
        self._cached = work.encode(self.inputs, QUICK)

    def run(self, kind: Kind) -> None:
        """A pass forward and back."""
        work, model = self._work, self._work.model
        mode = "expert" if kind.endswith("expert") else "joint"
        parameter_groups(model, mode, learning_rate=1e-5, vlm_learning_rate=1e-5)
        work.joint_graph.freeze(mode == "expert")
        model.speed = QUICK
        model.recompute_activations(kind.endswith("checkpointed"))
        log_prob = self._joint_log_prob() if kind.startswith("reference") else self._log_prob(self._prefix(kind))
        (log_prob - log_prob.detach()).exp().mean().backward()
        model.zero_grad(set_to_none=True)
        work.joint_graph.tail.zero_grad(set_to_none=True)
        model.recompute_activations(False)

    def _prefix(self, kind: Kind) -> PrefixCache:
        if kind == "cached expert":
            return self._cached
        with torch.set_grad_enabled(kind != "split expert"):
            return self._work.model.encode_prefix(self.inputs)

    def _log_prob(self, prefix: PrefixCache) -> Tensor:
        return chunk_log_prob(
            self._work.model,
            prefix,
            x_t=self.x_t[:, None],
            x_next=self.x_next[:, None],
            sde_index=self._index[:, None],
            denoise_steps=GRID,
            noise_level=NOISE_LEVEL,
            executed_mask=self._executed,
            counted_dims=range(ACTION_DIM),
        )

    def _joint_log_prob(self) -> Tensor:
        velocity = self._work.joint_graph.velocity(self.inputs, self.x_t, self.times)
        mean, std, log_std = flow.sde_moments(self.x_t, velocity, self._index, GRID, NOISE_LEVEL)
        return flow.gaussian_log_prob(self.x_next, mean, std, log_std)[..., :ACTION_DIM].sum((1, 2))

    def lerobot(self, other: lerobot_policy.LeRobotPolicy) -> None:
        """LeRobot's training pass: the same network, its own loss."""
        other.loss(self.inputs, self.x_next, self.x_t, self.times)[..., :ACTION_DIM].mean().backward()
        other.policy.zero_grad(set_to_none=True)


def updating(work: Work, limit: Device, rounds: int, other: lerobot_policy.LeRobotPolicy | None) -> dict[str, Any]:
    """Updates of the action expert alone, and of everything."""
    result = {}
    for horizon in work.size.horizons:
        update = Update(work, horizon)
        for mode in ("expert", "joint"):
            cases = []
            for kind in (kind for kind in UPDATES if mode in kind):
                cost = work.size.cost(horizon, padded=kind.startswith("reference"))
                cases.append(
                    Case(name=kind, run=partial(update.run, kind), flops=update.rows * cost.update(kind).total)
                )
            if other is not None and mode == "expert":
                run = partial(update.lerobot, other)
                cases.insert(1, replace(cases[0], name="LeRobot, train_expert_only", run=run))
            measured = measure(cases, rounds, work.device, limit)
            for case in cases:
                measured[case.name]["kept_for_backward_mb"] = round(kept_bytes(case.run, work.model) / 1e6, 2)
            result[f"{mode}, B={update.rows} H={horizon}"] = measured
    work.model.requires_grad_(False)
    return result


def kept_bytes(run: Callable[[], object], model: Pi05) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def sft(work: Work, limit: Device, rounds: int, precision: Precision) -> dict[str, Any]:
    """A whole SFT step with optimizer, with and without activation checkpointing. Changes the network: runs last."""
    size, model, result, rows = work.size, work.model, {}, work.size.update_batch
    weights = TrainedWeights(model, "joint", precision=precision, learning_rate=1e-6, vlm_learning_rate=1e-6)
    optimizer = torch.optim.AdamW(weights.groups, betas=(0.9, 0.95), fused=work.device.type == "cuda")
    times = torch.linspace(0.1, 1.0, rows, device=work.device)
    model.speed = QUICK

    def step(inputs: ModelInput, actions: Tensor, noise: Tensor, recompute: bool) -> None:
        model.recompute_activations(recompute)
        velocity = model.velocity(model.encode_prefix(inputs), flow.interpolate(actions, noise, times), times)
        (velocity - flow.target(actions, noise)).square().mean().backward()
        optimizer.step()
        weights.publish()
        optimizer.zero_grad(set_to_none=True)

    for horizon in size.horizons:
        inputs, actions, noise = work.inputs(rows), work.noise(rows, horizon), work.noise(rows, horizon)
        cost = size.cost(horizon)
        cases = [
            Case(
                name=name,
                run=partial(step, inputs, actions, noise, kind.endswith("checkpointed")),
                flops=rows * cost.update(kind).total,
            )
            for name, kind in SFT_STEPS.items()
        ]
        result[f"B={rows} H={horizon}"] = measure(cases, rounds, work.device, limit)
    return result


@torch.no_grad()
def agreement(work: Work, other: lerobot_policy.LeRobotPolicy | None) -> dict[str, float]:
    """Largest differences between what is compared, relative to the largest value; they must be rounding alone."""
    size, rows = work.size, 2
    inputs, noise = work.inputs(rows), work.noise(rows, size.config.horizon)
    times = torch.tensor([0.9, 0.3], device=work.device)

    def relative(ours: Tensor, theirs: Tensor) -> float:
        return float((ours - theirs).abs().max() / theirs.abs().max())

    work.model.speed = QUICK
    split = work.model.velocity(work.model.encode_prefix(inputs), noise, times)
    found = {"velocity of the joint graph": relative(work.joint_graph.velocity(inputs, noise, times), split)}
    quick = work.act(inputs, noise, 5, QUICK)
    for name, settings in (("plain", PLAIN), ("recorded", RECORDED)):
        found[f"actions, {name}"] = relative(work.act(inputs, noise, 5, settings), quick)
    if other is not None:
        found["actions, LeRobot"] = relative(other.sample(inputs, noise, 5), quick)
    limit = 1e-3 if work.model.expert.dtype == torch.float32 else 0.1
    wrong = {name: value for name, value in found.items() if not value < limit}
    if wrong:
        raise SystemExit(f"not the same function: {wrong}")
    return found


def main() -> None:
    """Measures everything and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="reduced")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="how often every case is timed, at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began, device, size = time.perf_counter(), torch.device(options.device), SIZES[options.size]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    limit = device_limit(device, dtype)
    policy = make_policy(size, device, dtype)
    work, reason = Work(size, policy), lerobot_policy.unavailable()
    other = None if reason else lerobot_policy.LeRobotPolicy(policy, expert_only=True)
    result: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "size": options.size,
        "parameters": policy.parameter_count,
        "dtype": str(dtype).removeprefix("torch."),
        "cameras": f"{size.cameras} of {size.slots}",
        "text_tokens": f"{size.text} of {size.config.max_tokens}",
        "rounds": options.rounds,
        **surroundings(device, limit),
        "lerobot": f"skipped, it does not import: {reason}" if reason else lerobot_policy.versions(),
        "agreement": agreement(work, other),
        "acting": acting(work, limit, options.rounds, other),
        "update": updating(work, limit, options.rounds, other),
    }
    del other
    result["sft"] = sft(work, limit, options.rounds, "bfloat16" if dtype == torch.bfloat16 else "float32")
    result["wall_s"] = round(time.perf_counter() - began, 1)
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
