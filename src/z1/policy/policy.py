"""A policy: network, tokenizer and processing, saved and loaded as one folder.

policy/
  model.safetensors    the network's parameters, by the names of ``Pi05``
  config.json          {"format": "z1.policy/1", "policy": sizes, "processor": processing with statistics}
  tokenizer.model      the sentencepiece model; or tokenizer.json, one of the tokenizers package
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from z1.data.transforms import pad_dims, unpad_dims
from z1.errors import CheckpointError, ConfigError
from z1.files import atomic_folder, read_json, write_json
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.images import letterbox
from z1.policy.lora import merged
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.sampler import SampledChunk, chunk_log_prob, sample_chunk
from z1.policy.tensor_files import MODEL_FILE, Entry, OnBytes, TensorFiles, write_tensors
from z1.policy.tokenizer import SENTENCEPIECE_FILE, Tokenizer, build_prompt, stored_tokenizer
from z1.policy.weights import check_rules, own_rules, read_into, read_model
from z1.seeding import Seeds
from z1.types import Observations

FORMAT = "z1.policy/1"
CONFIG_FILE, TOKENIZER_FILE = "config.json", SENTENCEPIECE_FILE


class Policy:
    """Observations in, env actions out.

    Attributes:
        model: The network.
        processor: How observations and actions are processed.
        tokenizer: Text to tokens.
        counted_dims: Action dims that the policy can change. One that never varied in its demonstrations is a constant
            whatever the network says; like padding, it tells nothing of why an action was good, so that it does not
            count in the likelihood.
    """

    def __init__(self, model: Pi05, processor: ProcessorConfig, tokenizer: Tokenizer) -> None:
        """Puts the parts together.

        Raises:
            ConfigError: They do not fit each other.
        """
        config = model.config
        if processor.action_dim > config.action_dim:
            raise ConfigError(
                f"processor.action_dim is {processor.action_dim}, but the network has {config.action_dim} action dims; "
                "choose a network with a larger action_dim"
            )
        if tokenizer.size > config.vlm.vocab:
            raise ConfigError(
                f"the tokenizer has {tokenizer.size} pieces, but the network embeds {config.vlm.vocab}; "
                "choose the tokenizer that belongs to the network"
            )
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self._state_normalizer, self._action_normalizer = processor.normalizers()
        self.counted_dims = self._action_normalizer.moving_dims()
        if not self.counted_dims:
            raise ConfigError("processor.action_stats: no action dim varies; the policy could do nothing")

    @classmethod
    def create(
        cls, config: PolicyConfig, processor: ProcessorConfig, seed: int, tokenizer: Tokenizer | None = None
    ) -> Policy:
        """A policy with random weights.

        Args:
            config: Sizes.
            processor: Processing.
            seed: Of the weights.
            tokenizer: Default: the small one that is shipped with z1.

        Raises:
            ConfigError: The parts do not fit each other.
        """
        model = Pi05.initialised(config, Seeds(seed).rng("policy", "weights"))
        return cls(model, processor, tokenizer or Tokenizer.tiny())

    @property
    def config(self) -> PolicyConfig:
        """Sizes of the network."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def parameter_count(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def to(self, device: torch.device | str) -> Policy:
        """Moves the network to a device; returns the same policy."""
        self.model.to(device)
        return self

    def prepare(self, observations: Observations) -> ModelInput:
        """Model input of B observations, on the network's device.

        Args:
            observations: Images of the processor's cameras, in its order.

        Raises:
            ConfigError: The number of cameras or the width of the state is not what the policy was made for.
        """
        processor = self.processor
        count, cameras = observations.images.shape[:2]
        if cameras != len(processor.cameras):
            raise ConfigError(
                f"the observations have {cameras} cameras, the policy looks through {len(processor.cameras)} "
                f"({', '.join(processor.cameras)}); render these"
            )
        images = torch.from_numpy(np.require(observations.images, requirements="W")).permute(0, 1, 4, 2, 3)
        if images.shape[-2:] != (self.config.image_size, self.config.image_size):
            images = letterbox(images.flatten(0, 1), self.config.image_size, processor.resize).unflatten(
                0, (count, cameras)
            )
        tokens, token_mask = self._tokenise(observations)
        return ModelInput(
            images=images.contiguous().to(self.device),
            image_mask=torch.ones(count, cameras, dtype=torch.bool, device=self.device),
            tokens=torch.from_numpy(tokens).to(self.device),
            token_mask=torch.from_numpy(token_mask).to(self.device),
        )

    def encode_prefix(self, inputs: ModelInput) -> PrefixCache:
        """Runs the VLM once per observation; see ``Pi05.encode_prefix``."""
        return self.model.encode_prefix(inputs)

    def velocity(self, prefix: PrefixCache, x_t: Tensor, t: Tensor) -> Tensor:
        """The flow's velocity ``[B, H, D]``; see ``Pi05.velocity``."""
        return self.model.velocity(prefix, x_t, t)

    def sample_chunk(
        self,
        prefix: PrefixCache,
        *,
        initial_noise: Tensor,
        denoise_steps: int,
        noise_level: float = 0.0,
        sde_index: Tensor | None = None,
        sde_noise: Tensor | None = None,
        executed_steps: int,
        correlation: float = 0.0,
        modes: int = 0,
    ) -> SampledChunk:
        """Denoises B chunks, over the processor's action dims; see ``z1.policy.sampler.sample_chunk``."""
        return sample_chunk(
            self.model,
            prefix,
            initial_noise=initial_noise,
            denoise_steps=denoise_steps,
            noise_level=noise_level,
            sde_index=sde_index,
            sde_noise=sde_noise,
            executed_steps=executed_steps,
            counted_dims=self.counted_dims,
            correlation=correlation,
            modes=modes,
        )

    def chunk_log_prob(
        self,
        prefix: PrefixCache,
        *,
        x_t: Tensor,
        x_next: Tensor,
        sde_index: Tensor,
        denoise_steps: int,
        noise_level: float,
        executed_mask: Tensor,
        correlation: float = 0.0,
        modes: int = 0,
    ) -> Tensor:
        """Log-probs of recorded stochastic steps ``[B, M]``; see ``z1.policy.sampler.chunk_log_prob``."""
        return chunk_log_prob(
            self.model,
            prefix,
            x_t=x_t,
            x_next=x_next,
            sde_index=sde_index,
            denoise_steps=denoise_steps,
            noise_level=noise_level,
            executed_mask=executed_mask,
            counted_dims=self.counted_dims,
            correlation=correlation,
            modes=modes,
        )

    def _tokenise(self, observations: Observations) -> tuple[np.ndarray, np.ndarray]:
        processor, normalizer = self.processor, self._state_normalizer
        states: list[Any] = [None] * len(observations)
        if normalizer is not None:
            if observations.state.shape[-1] != processor.state_dim:
                raise ConfigError(
                    f"the observations have {observations.state.shape[-1]} state dims, the policy was made for "
                    f"{processor.state_dim}; choose a policy that was trained on this simulator"
                )
            states = list(normalizer.normalize(observations.state))
        prompts = [
            build_prompt(instruction, state, processor.prompt)
            for instruction, state in zip(observations.instructions, states, strict=True)
        ]
        return self.tokenizer.batch(prompts, self.config.max_tokens)

    def normalize_actions(self, actions: np.ndarray) -> Tensor:
        """Env actions in model units.

        Args:
            actions: float ``[..., A]``, env units.

        Returns:
            float32 ``[..., D]`` on the network's device; dims beyond A are 0.
        """
        normal = self._action_normalizer.normalize(np.asarray(actions)).astype(np.float32)
        return torch.from_numpy(pad_dims(normal, self.config.action_dim)).to(self.device)

    def env_actions(self, actions: Tensor) -> np.ndarray:
        """Model output in env units, clipped to the action bounds.

        Args:
            actions: float ``[..., D]``, model units.

        Returns:
            float32 ``[..., A]``.
        """
        processor = self.processor
        real = unpad_dims(actions.detach().float().cpu().numpy(), processor.action_dim)
        result = self._action_normalizer.unnormalize(real)
        if processor.action_low is not None and processor.action_high is not None:
            result = np.clip(result, processor.action_low, processor.action_high)
        return result.astype(np.float32)

    def save(
        self,
        path: Path | str,
        *,
        replace: bool = False,
        tensors: Mapping[str, Tensor] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Writes the policy's folder, in one move.

        Args:
            path: The folder.
            replace: Whether an existing folder is replaced.
            tensors: Weights to write instead of the network's own, in which adapters are merged.
            on_bytes: Told about progress.

        Raises:
            RunFolderError: It exists already or cannot be written.
        """
        tensors = merged(self.model, self.model.state_dict()) if tensors is None else tensors
        entries = [
            Entry(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, make=tensor.detach)
            for name, tensor in tensors.items()
        ]
        with atomic_folder(Path(path), replace=replace) as folder:
            write_tensors(folder / MODEL_FILE, entries, {"format": "pt"}, on_bytes)
            (folder / self.tokenizer.file_name).write_bytes(self.tokenizer.serialised)
            write_json(
                folder / CONFIG_FILE,
                {"format": FORMAT, "policy": self.config.to_json(), "processor": self.processor.to_json()},
            )

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        on_bytes: OnBytes | None = None,
    ) -> Policy:
        """Reads a policy's folder as z1 writes it; ``z1.policy.load_policy`` reads those of others as well.

        Args:
            path: The folder.
            dtype: Of the network, see ``z1.policy.weights.parameter_dtype``.
            device: Of the network.
            on_bytes: Told about progress.

        Raises:
            CheckpointError: Something is missing, damaged, of another version or does not fit.
        """
        folder = Path(path)
        config, processor = read_settings(folder)
        tokenizer = Tokenizer.load(stored_tokenizer(folder))
        files, rules = TensorFiles.of_folder(folder), own_rules(config)
        check_rules(files, rules)
        model = read_model(config, files, rules, dtype=dtype, device=device, on_bytes=on_bytes)
        try:
            return cls(model, processor, tokenizer)
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def load_weights(self, path: Path | str, *, into: Mapping[str, Tensor] | None = None) -> None:
        """Overwrites the weights, in place, with those of a policy's folder.

        Args:
            path: The folder.
            into: Tensors to overwrite, by name, instead of all of the network's own.

        Raises:
            CheckpointError: They are missing, damaged or of another size.
        """
        folder = Path(path)
        _read_config_json(folder)
        files, rules = TensorFiles.of_folder(folder), own_rules(self.config)
        check_rules(files, rules)
        targets = self.model.state_dict() if into is None else into
        read_into(targets, files, [rule for rule in rules if rule.name in targets])


def read_settings(path: Path | str) -> tuple[PolicyConfig, ProcessorConfig]:
    """Sizes and processing of a saved policy, without reading its weights.

    Raises:
        CheckpointError: There is no policy, or its config.json is damaged or of another version.
    """
    folder = Path(path)
    value, source = _read_config_json(folder), str(folder / CONFIG_FILE)
    processor = ProcessorConfig.from_json(value.get("processor"), source=source)
    return PolicyConfig.from_json(value.get("policy"), source=source), processor


def read_config(path: Path | str) -> PolicyConfig:
    """Sizes of a saved policy, without reading its weights.

    Raises:
        CheckpointError: There is no policy, or its config.json is damaged or of another version.
    """
    folder = Path(path)
    return PolicyConfig.from_json(_read_config_json(folder).get("policy"), source=str(folder / CONFIG_FILE))


def _read_config_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(
            f"policy folder {folder} does not exist; give a folder that holds {MODEL_FILE} and {CONFIG_FILE}"
        )
    value = read_json(folder / CONFIG_FILE, CheckpointError)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has format {found!r}, expected {FORMAT!r}; "
            "it is no policy of z1, or of another version"
        )
    return value
