"""Memory and work that training a full-size pi0.5 takes, by mode: counted on a network without values, without a GPU.

    python benchmarks/training_memory.py            # the tables of docs/training_modes.md

States are the bytes of what ``TrainedWeights`` holds, of one gradient per trained weight and of AdamW's two moments.
Activations are the bytes of all storages that autograd keeps for the backward pass of one sample, parameters and
prefixes of a frozen VLM not counted. Work is counted by torch's FlopCounterMode. Not in these numbers: workspaces of
kernels, the activations of the layer that is being recomputed, and the allocator's fragmentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from z1.config import LORA_ALPHA, LORA_RANK, Precision
from z1.policy.config import PolicyConfig
from z1.policy.pi05 import Pi05, PrefixCache
from z1.policy.trainable import MODES
from z1.seeding import Seeds
from z1.train.trained import TrainedWeights, adapters_of

CAMERAS, TEXT = 3, 200

Sizes = tuple[int, ...]


def _attention(query: Sizes, key: Sizes, value: Sizes, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Sizes, query: Sizes, key: Sizes, value: Sizes, *rest: Any, **named: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's attention, which the counter does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes that do not depend on the batch.

    Attributes:
        parameters: Number of weights that train.
        network: What the network computes with, frozen parts and masters that compute included.
        masters: Float32 masters of weights that compute in bfloat16.
        gradients: One per trained weight.
        optimizer: AdamW's moments.
    """

    parameters: int
    network: int
    masters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.network + self.masters + self.gradients + self.optimizer


def prepared(config: PolicyConfig, mode: str, precision: Precision) -> tuple[Pi05, TrainedWeights]:
    """A network as a training run holds it."""
    model = Pi05(config)
    return model, TrainedWeights(
        model,
        mode,
        precision=precision,
        learning_rate=1.0,
        vlm_learning_rate=1.0,
        adapters=adapters_of(mode, LORA_RANK, LORA_ALPHA, Seeds(0)),
    )


def states(model: Pi05, trained: TrainedWeights) -> States:
    """Counts them."""
    own = {id(parameter) for parameter in model.parameters()}
    weights = list(trained.by_name.values())
    return States(
        parameters=sum(weight.numel() for weight in weights),
        network=sum(parameter.nbytes for parameter in model.parameters()),
        masters=sum(weight.nbytes for weight in weights if id(weight) not in own),
        gradients=sum(weight.nbytes for weight in weights),
        optimizer=sum(2 * weight.nbytes for weight in weights),
    )


@contextmanager
def counting(model: Pi05) -> Iterator[dict[int, tuple[object, int]]]:
    """Collects the storages that autograd keeps while the block runs."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[object, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def encode(model: Pi05) -> PrefixCache:
    """One observation's prefix."""
    size = model.config.image_size
    blocks = model.projector(model.vision(torch.empty(CAMERAS, 3, size, size)))[None].flatten(1, 2)
    text = model.vlm.embed(torch.zeros(1, TEXT, dtype=torch.int64))
    keys, values = model.vlm(torch.cat((blocks, text.to(blocks.dtype)), dim=1), None)
    return PrefixCache(keys=keys, values=values, mask=torch.ones(1, keys.shape[2], dtype=torch.bool), full=True)


def velocity(model: Pi05, prefix: PrefixCache) -> Tensor:
    """One denoise step of one sample."""
    return model.velocity(prefix, torch.empty(1, model.config.horizon, model.config.action_dim), torch.ones(1))


def activations(model: Pi05, *, trains_vlm: bool, recompute: bool) -> int:
    """Bytes kept for one sample's backward pass."""
    model.recompute_activations(recompute)
    with counting(model) as kept:
        with torch.set_grad_enabled(trains_vlm):
            prefix = encode(model)
        velocity(model, prefix)
    frozen = () if trains_vlm else (prefix.keys.untyped_storage()._cdata, prefix.values.untyped_storage()._cdata)
    return sum(nbytes for key, (_, nbytes) in kept.items() if key not in frozen)


def work(model: Pi05, *, trains_vlm: bool, recompute: bool) -> tuple[float, float]:
    """Floating point operations of encoding one observation without gradient, and of one sample's forward and backward
    pass; where the VLM is frozen without its prefix.
    """
    model.recompute_activations(recompute)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as prefix_flops, torch.no_grad():
        prefix = encode(model)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as pass_flops:
        velocity(model, encode(model) if trains_vlm else prefix).sum().backward()
    return prefix_flops.get_total_flops(), pass_flops.get_total_flops()


def main() -> None:
    """Prints both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    config = PolicyConfig.pi05()
    print("| mode | precision | weights that train | network | masters | gradients | AdamW | total, GB |")
    print("|---|---|---|---|---|---|---|---|")
    samples = []
    for mode in MODES:
        for precision in ("bfloat16", "float32"):
            with FakeTensorMode(allow_non_fake_inputs=True):
                model, trained = prepared(config, mode, precision)
                count = states(model, trained)
                if precision == "bfloat16":
                    trains = mode != "expert"
                    kept = [activations(model, trains_vlm=trains, recompute=on) for on in (False, True)]
                    flops = [work(model, trains_vlm=trains, recompute=on) for on in (False, True)]
                    samples.append((mode, *kept, flops[0][1], flops[1][1]))
                    prefix = flops[0][0]
            parts = (count.network, count.masters, count.gradients, count.optimizer)
            numbers = " | ".join(f"{nbytes / 1e9:.2f}" for nbytes in parts)
            trains = f"{count.parameters / 1e6:,.1f} M"
            print(f"| `{mode}` | {precision} | {trains} | {numbers} | **{count.total / 1e9:.1f}** |")
    print(f"\nOne sample, {CAMERAS} cameras and {TEXT} text tokens, H = {config.horizon}, bfloat16.")
    print(f"One VLM prefix without gradient: {prefix / 1e12:.2f} TFLOP.\n")
    print("| mode | kept, GB | recomputed: kept, GB | TFLOP | recomputed: TFLOP |\n|---|---|---|---|---|")
    for mode, plain, recomputed, passes, again in samples:
        print(f"| `{mode}` | {plain / 1e9:.3f} | {recomputed / 1e9:.3f} | {passes / 1e12:.2f} | {again / 1e12:.2f} |")


if __name__ == "__main__":
    main()
