"""pi0.5: a VLM prefix and a flow-matching action expert, with the graph split between them.

``encode_prefix`` runs the VLM once per observation and keeps its keys and values; ``velocity`` runs the expert against
them, once per denoise step. With gradients enabled the split graph gives the gradients of the joint one.

Source: pi0.5 (arXiv 2504.16054); openpi and LeRobot for the numbers, see tests/parity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from z1.policy import flow
from z1.policy.config import PolicyConfig
from z1.policy.denoise import ModulationTables, RecordedStep, RecordedSteps, Velocity, roomy
from z1.policy.gemma import ActionExpert, Past, Vlm
from z1.policy.past import AppendedPast, JoinedPast, SharedPast, masked_room
from z1.policy.siglip import VisionEncoder
from z1.policy.speed import SpeedSettings

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0

SUMMARY_LAYERS = 3
"""Layers of the VLM that ``PrefixCache.summary`` looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """What the network sees of B observations.

    Attributes:
        images: ``[B, V, 3, height, width]``, either uint8 (0..255) or float32 in [-1, 1].
        image_mask: bool ``[B, V]``, cameras that exist.
        tokens: int64 ``[B, T]``, text tokens, padded on the right.
        token_mask: bool ``[B, T]``, tokens that count.
    """

    images: Tensor
    image_mask: Tensor
    tokens: Tensor
    token_mask: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> ModelInput:
        """Some rows, by int64 index."""
        index = index.to(self.tokens.device)
        return ModelInput(
            images=self.images.index_select(0, index),
            image_mask=self.image_mask.index_select(0, index),
            tokens=self.tokens.index_select(0, index),
            token_mask=self.token_mask.index_select(0, index),
        )

    @staticmethod
    def concat(parts: Sequence[ModelInput]) -> ModelInput:
        """Rows of several inputs, in order; texts are padded to the longest."""
        longest = max(part.tokens.shape[1] for part in parts)
        return ModelInput(
            images=torch.cat([part.images for part in parts]),
            image_mask=torch.cat([part.image_mask for part in parts]),
            tokens=torch.cat([_pad(part.tokens, 1, longest) for part in parts]),
            token_mask=torch.cat([_pad(part.token_mask, 1, longest) for part in parts]),
        )

    def trimmed(self) -> ModelInput:
        """Without the cameras that no row has and without the text padding that all rows have."""
        cameras = self.image_mask.any(0)
        images, image_mask = self.images, self.image_mask
        if not bool(cameras.all()):
            images, image_mask = images[:, cameras], image_mask[:, cameras]
        length = max(int(self.token_mask.sum(1).max()), 1)
        return ModelInput(
            images=images,
            image_mask=image_mask,
            tokens=self.tokens[:, :length],
            token_mask=self.token_mask[:, :length],
        )

    def to(self, device: torch.device | str) -> ModelInput:
        """The same on a device."""
        return ModelInput(
            images=self.images.to(device),
            image_mask=self.image_mask.to(device),
            tokens=self.tokens.to(device),
            token_mask=self.token_mask.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache:
    """The VLM's keys and values of B prefixes of up to L tokens; all that the action expert needs of an observation.

    Attributes:
        keys: float ``[B, depth, L, kv_heads * head_dim]``, after the rotary embedding, contiguous.
        values: As the keys.
        mask: bool ``[B, L]``, tokens that count.
        full: Whether every token of every row counts, so that attention needs no mask.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    full: bool

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, index: Tensor) -> PrefixCache:
        """Some rows, by int64 index; a row may be taken several times, and gets the sum of their gradients."""
        index = index.to(self.keys.device)
        return PrefixCache(
            keys=self.keys.index_select(0, index),
            values=self.values.index_select(0, index),
            mask=self.mask.index_select(0, index),
            full=self.full,
        )

    @staticmethod
    def concat(parts: Sequence[PrefixCache]) -> PrefixCache:
        """Rows of several caches, in order; shorter prefixes are padded with tokens that do not count."""
        longest = max(part.mask.shape[1] for part in parts)
        return PrefixCache(
            keys=torch.cat([_pad(part.keys, 2, longest) for part in parts]),
            values=torch.cat([_pad(part.values, 2, longest) for part in parts]),
            mask=torch.cat([_pad(part.mask, 1, longest) for part in parts]),
            full=all(part.full and part.mask.shape[1] == longest for part in parts),
        )

    def repeated(self, rows: int) -> PrefixCache:
        """Each row several times in a row, so that there are ``rows``; the same when there are already."""
        if rows == len(self):
            return self
        return self.rows(torch.arange(len(self), device=self.keys.device).repeat_interleave(rows // len(self)))

    def summary(self, layers: int = SUMMARY_LAYERS) -> Tensor:
        """What the VLM made of each observation, as one vector: for a critic, not for acting.

        Args:
            layers: How many of the last layers to look at, at most ``depth``.

        Returns:
            float32 ``[B, 2 * layers * kv_heads * head_dim]``: the values of these layers, averaged over the tokens that
            count, then those of the last token that counts, which has attended to all others.
        """
        values, mask = self.values[:, -layers:].float(), self.mask
        count = mask.sum(dim=1)
        mean = (values * mask[:, None, :, None]).sum(dim=2) / count[:, None, None]
        position = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * position).argmax(dim=1)
        ends = values[torch.arange(len(self), device=mask.device), :, last]
        return torch.cat((mean.flatten(1), ends.flatten(1)), dim=1)

    def detach(self) -> PrefixCache:
        """The same without gradient."""
        return PrefixCache(keys=self.keys.detach(), values=self.values.detach(), mask=self.mask, full=self.full)

    def to(self, device: torch.device | str) -> PrefixCache:
        """The same on a device."""
        return PrefixCache(
            keys=self.keys.to(device), values=self.values.to(device), mask=self.mask.to(device), full=self.full
        )

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.keys.nbytes + self.values.nbytes + self.mask.nbytes


def _pad(tensor: Tensor, dim: int, length: int) -> Tensor:
    """Pads one axis with zeros (False) at its end."""
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    after = [0] * (2 * (tensor.ndim - 1 - dim))
    return functional.pad(tensor, (*after, 0, missing))


@lru_cache(maxsize=16)
def _angular_frequencies(width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=device)
        return 2.0 * math.pi / (MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction)


def embed_time(t: Tensor, width: int) -> Tensor:
    """Sine and cosine features of a time, periods from 0.004 to 4.

    Args:
        t: float32 ``[U]``, never rounded to fewer bits: its last one is visible in the result.
        width: Number of features.

    Returns:
        float32 ``[U, width]``, sines first; computed in float64, because the angles reach 1571.
    """
    angles = t[:, None].double() * _angular_frequencies(width, t.device)
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


class Pi05(nn.Module):
    """The network.

    Built by ``Pi05.initialised`` or by loading a checkpoint; the constructor alone leaves parameters without values
    when it runs on the meta device, as both of them make it do.

    Attributes:
        config: Sizes.
        speed: What it does to be quick; may be replaced at any time.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        width = config.expert.width
        self.config = config
        self.speed = SpeedSettings()
        self._tables, self._recorded = ModulationTables(), RecordedSteps()
        self.vision = VisionEncoder(config.vision)
        self.projector = nn.Linear(config.vision.width, config.vlm.width)
        self.vlm = Vlm(config.vlm)
        self.expert = ActionExpert(config.expert, config.vlm)
        self.action_in = nn.Linear(config.action_dim, width)
        self.action_out = nn.Linear(width, config.action_dim)
        self.time_in = nn.Linear(width, width)
        self.time_out = nn.Linear(width, width)

    @classmethod
    def blank(cls, config: PolicyConfig) -> Pi05:
        """A network on the meta device: shapes without memory."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def initialised(cls, config: PolicyConfig, rng: np.random.Generator) -> Pi05:
        """A network with random weights, for training from scratch.

        Matrices are normal with variance 1 / inputs, those that end a residual branch smaller by sqrt(2 * depth) and
        the last one by 10; biases are 0; image positions start as two-dimensional sines and cosines; the adaptive
        norms start as plain norms with ``config.initial_gate``.

        Args:
            config: Sizes.
            rng: Source of the weights.
        """
        model = cls.blank(config).to_empty(device="cpu")
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, config, rng)
        return model

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.action_in.weight.device

    def recompute_activations(self, on: bool) -> None:
        """Whether training keeps only what goes into each layer and computes the rest again in the backward pass."""
        self.vision.recompute = self.vlm.recompute = self.expert.recompute = on

    def encode_prefix(self, inputs: ModelInput, *, trim: bool = True) -> PrefixCache:
        """Runs image encoder and VLM.

        Cameras that no row has and text padding that all rows have are left out before the VLM; what single rows lack
        is masked. Both are exact: tokens that do not count take no position and are never attended to.

        Args:
            inputs: B observations.
            trim: Whether to leave out what no row has; False for inputs that were trimmed before.

        Returns:
            Keys and values of B rows; differentiable unless gradients are disabled.
        """
        if trim and self.speed.trim:
            inputs = inputs.trimmed()
        blocks = self._image_blocks(inputs.images, inputs.image_mask)
        x = torch.cat((blocks, self.vlm.embed(inputs.tokens).to(blocks.dtype)), dim=1)
        image_mask = inputs.image_mask.repeat_interleave(self.config.vision.tokens, dim=1)
        mask = torch.cat((image_mask, inputs.token_mask), dim=1)
        full = bool(mask.all())
        keys, values = self.vlm(x, None if full else mask)
        return PrefixCache(keys=keys, values=values, mask=mask, full=full)

    def _image_blocks(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images ``[B, V, 3, h, w]`` to tokens ``[B, V * T, width]``; only existing ones are computed."""
        batch, cameras = mask.shape
        flat = images.flatten(0, 1)
        chosen = None if bool(mask.all()) else mask.flatten().nonzero().flatten()
        if chosen is not None:
            flat = flat[chosen]
        if flat.dtype == torch.uint8:
            flat = flat.float() / 255.0 * 2.0 - 1.0
        encoded = self.vision(flat)
        blocks = self.projector(encoded.to(self.projector.weight.dtype))
        if chosen is not None:
            blocks = blocks.new_zeros(batch * cameras, *blocks.shape[1:]).index_copy(0, chosen, blocks)
        return blocks.reshape(batch, cameras * blocks.shape[1], blocks.shape[2])

    def modulation(self, t: Tensor) -> Tensor:
        """What the time does to the expert: scales, shifts and gates of all its norms.

        Depends on t alone, so a sampler computes it once per grid and not once per row.

        Args:
            t: float32 ``[U]``.

        Returns:
            float32 ``[U, norms * 3 * width]``.
        """
        assert t.dtype == torch.float32, t.dtype
        with torch.autocast(t.device.type, enabled=False):
            condition = functional.silu(self.time_in(embed_time(t, self.config.expert.width)))
            return self.expert.modulation(functional.silu(self.time_out(condition)))

    @contextmanager
    def constant_weights(self) -> Iterator[None]:
        """While it is in force the weights do not change: what depends on them alone is computed once.

        A rollout of thousands of chunks needs one ``modulation_table``. May be nested.
        """
        self._tables.open()
        try:
            yield
        except BaseException:
            self._tables.abandon()
            raise
        with torch.no_grad():
            self._tables.close(self._time_weights(), self._modulation_of_grid)

    def modulation_table(self, denoise_steps: int) -> Tensor:
        """``modulation`` at every time of the grid but the last.

        Args:
            denoise_steps: K.

        Returns:
            float32 ``[K, norms * 3 * width]``; differentiable unless gradients are disabled.
        """
        if torch.is_grad_enabled() or not self.speed.keep_modulation:
            return self._modulation_of_grid(denoise_steps)
        return self._tables.get(denoise_steps, self._time_weights(), self._modulation_of_grid)

    def _modulation_of_grid(self, denoise_steps: int) -> Tensor:
        return self.modulation(flow.time_grid(denoise_steps)[:-1].to(self.device))

    def _time_weights(self) -> Iterator[Tensor]:
        for part in (self.time_in, self.time_out, self.expert.modulation):
            yield from part.parameters()

    def velocity(self, prefix: PrefixCache, x_t: Tensor, t: Tensor) -> Tensor:
        """The flow's velocity, noise minus action.

        Args:
            prefix: B prefixes; or fewer, that G rows each have in common: row ``i`` has prefix ``i // G``, of which
                there is no copy.
            x_t: float32 ``[B, H, D]``, noisy actions.
            t: float32 ``[B]``, or ``[1]`` for all rows.

        Returns:
            float32 ``[B, H, D]``.
        """
        return self.modulated_velocity(prefix, x_t, self.modulation(t))

    def modulated_velocity(self, prefix: PrefixCache, x_t: Tensor, modulation: Tensor) -> Tensor:
        """``velocity`` with the time given by its ``modulation``.

        Args:
            prefix: As for ``velocity``.
            x_t: float32 ``[B, H, D]``.
            modulation: float32 ``[B or 1, norms * 3 * width]``.

        Returns:
            float32 ``[B, H, D]``.
        """
        rows, horizon = x_t.shape[:2]
        if self._shared(prefix, rows):
            past: Past = SharedPast(*_contents(prefix), rows, horizon, self.config.vlm)
        else:
            past = JoinedPast(*_contents(prefix.repeated(rows)), horizon, self.config.vlm)
        return self._velocity(x_t, modulation, past)

    def _shared(self, prefix: PrefixCache, rows: int) -> bool:
        """Whether so many rows are to attend to fewer prefixes."""
        assert rows % len(prefix) == 0, (rows, len(prefix))
        return rows > len(prefix) and self.speed.share_prefix

    def _velocity(self, x_t: Tensor, modulation: Tensor, past: Past) -> Tensor:
        """``modulated_velocity`` with the prefixes laid out."""
        assert x_t.dtype == torch.float32, x_t.dtype
        with torch.autocast(x_t.device.type, enabled=False):
            x = self.action_in(x_t).to(self.expert.dtype)
        features = self.expert(x, modulation, past)
        with torch.autocast(x_t.device.type, enabled=False):
            return self.action_out(features.float())

    @torch.no_grad()
    def denoiser(self, prefix: PrefixCache, x_t: Tensor, modulation: Tensor) -> Velocity:
        """``modulated_velocity`` for many denoise steps against the same prefixes, without gradient.

        Args:
            prefix: As for ``velocity``.
            x_t: float32 ``[B, H, D]``, gives the shape of what will be asked.
            modulation: float32 ``[B or 1, norms * 3 * width]``, likewise.

        Returns:
            A function of ``x_t`` and ``modulation``, good until the next call of ``denoiser``.
        """
        speed, layout = self.speed, self.config.vlm
        rows, horizon = x_t.shape[:2]
        shared = self._shared(prefix, rows)
        if not shared:
            prefix = prefix.repeated(rows)
        if speed.cuda_graph and rows * horizon <= speed.graph_tokens:
            return self._recording(prefix, x_t, modulation)
        if shared:
            past: Past = SharedPast(*_contents(prefix), rows, horizon, layout, fused=True)
        elif speed.append_in_place:
            length, dtype, device = prefix.mask.shape[1], self.expert.attention_dtype, x_t.device
            past = AppendedPast(
                layout, rows=rows, length=length, horizon=horizon, masked=not prefix.full, dtype=dtype, device=device
            )
            past.fill(*_contents(prefix))
        else:
            past = JoinedPast(*_contents(prefix), horizon, layout)

        return torch.no_grad()(lambda x_t, modulation: self._velocity(x_t, modulation, past))

    def _recording(self, prefix: PrefixCache, x_t: Tensor, modulation: Tensor) -> Velocity:
        """A recorded step, filled with prefixes."""
        rows, horizon = x_t.shape[:2]
        length, kind = roomy(prefix.mask.shape[1], horizon), x_t.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (len(prefix), length, *x_t.shape, len(modulation), autocast)

        def record() -> RecordedStep:
            shape = {"rows": rows, "length": length, "horizon": horizon}
            dtype = self.expert.attention_dtype
            past = masked_room(self.config.vlm, prefixes=len(prefix), dtype=dtype, device=x_t.device, **shape)
            return RecordedStep(self._velocity, past, x_t, modulation)

        parts = (self.expert, self.action_in, self.action_out)
        weights = (parameter for part in parts for parameter in part.parameters())
        step = self._recorded.get(key, weights, self.speed.graph_shapes, record)
        step.past.fill(*_contents(prefix))
        return step


def _contents(prefix: PrefixCache) -> tuple[Tensor, Tensor, Tensor | None]:
    return prefix.keys, prefix.values, None if prefix.full else prefix.mask


def _initialise(name: str, parameter: nn.Parameter, config: PolicyConfig, rng: np.random.Generator) -> None:
    """Fills one parameter; see ``Pi05.initialised``."""
    with torch.no_grad():
        if name.startswith("expert.modulation."):
            parameter.zero_()
            if name.endswith("bias"):
                norms = parameter.view(-1, 3, config.expert.width)
                norms[:-1, 2] = config.initial_gate
        elif name == "vision.position":
            parameter.copy_(_grid_positions(config.image_size // config.vision.patch, config.vision.width))
        elif name.startswith("vision.") and "norm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif parameter.ndim == 1:
            parameter.zero_()
        else:
            inputs = parameter.shape[1]
            scale = inputs**-0.5
            if name.endswith((".out.weight", ".down.weight")):
                depth = config.vision.depth if name.startswith("vision.") else config.vlm.depth
                scale *= (2 * depth) ** -0.5
            elif name == "action_out.weight":
                scale *= 0.1
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32)))
            parameter.mul_(scale)


def _grid_positions(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, float32 ``[grid * grid, width]``, half the dims for each of the two axes."""
    quarter = max(width // 4, 1)
    frequency = 10_000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.arange(grid)[:, None] * frequency
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows = axis[:, None].expand(grid, grid, -1)
    columns = axis[None].expand(grid, grid, -1)
    table = torch.cat((rows, columns), dim=2).reshape(grid * grid, -1)
    return _pad(table[:, :width], 1, width)
