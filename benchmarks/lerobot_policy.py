"""LeRobot's own pi0.5 with z1's weights, for a comparison in one run. Needs the extra ``bench``, Python 3.12 or later.

Nothing of LeRobot is replaced but, for networks of another size than pi0.5's, the sizes with which it builds itself.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from z1.errors import CheckpointError
from z1.files import read_json, write_json
from z1.policy.checkpoints.save import save_policy
from z1.policy.config import PolicyConfig
from z1.policy.pi05 import ModelInput
from z1.policy.policy import Policy

VLM, EXPERT = "gemma_2b", "gemma_300m"


def unavailable() -> str | None:
    """Why LeRobot cannot be used here, or None when it can."""
    try:
        import lerobot.policies.pi05.modeling_pi05  # noqa: F401
    except Exception as error:  # whatever its import trips over is the answer
        return f"{type(error).__name__}: {error}"
    return None


def versions() -> dict[str, str]:
    """Of LeRobot and of what it is built on."""
    import lerobot
    import transformers

    return {"lerobot": lerobot.__version__, "transformers": transformers.__version__}


class LeRobotPolicy:
    """LeRobot's ``PI05Policy`` with a policy's weights, which go through a LeRobot directory."""

    def __init__(self, policy: Policy, *, expert_only: bool) -> None:
        """Writes the weights, loads them there.

        Args:
            policy: The policy; cameras that are missing must be named by its processor, too.
            expert_only: LeRobot's ``train_expert_only``.
        """
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.pi05.modeling_pi05 import PI05Policy

        dtype = policy.model.expert.dtype
        logging.getLogger().setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder, _sizes(policy.config):
            target = Path(folder) / "policy"
            save_policy(policy, target, "lerobot")
            settings = read_json(target / "config.json", CheckpointError)
            settings |= {"paligemma_variant": VLM, "action_expert_variant": EXPERT, "device": str(policy.device)}
            write_json(target / "config.json", settings | {"train_expert_only": expert_only})
            config = PreTrainedConfig.from_pretrained(target)
            with contextlib.redirect_stdout(said := io.StringIO()):
                self.policy = PI05Policy.from_pretrained(target, config=config)
        if "All keys loaded successfully" not in said.getvalue():
            raise RuntimeError(f"LeRobot did not take the weights:\n{said.getvalue()}")
        assert next(self.policy.model.paligemma_with_expert.gemma_expert.parameters()).dtype == dtype

    @staticmethod
    def _inputs(inputs: ModelInput) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        images = inputs.images
        if images.dtype == torch.uint8:
            images = images.float() / 255.0 * 2.0 - 1.0
        return list(images.unbind(1)), list(inputs.image_mask.unbind(1)), inputs.tokens, inputs.token_mask

    def sample(self, inputs: ModelInput, noise: Tensor, steps: int) -> Tensor:
        """Chunks ``[B, H, D]`` from noise of that shape."""
        self.policy.config.chunk_size = noise.shape[1]
        self.policy.eval()
        return self.policy.model.sample_actions(*self._inputs(inputs), noise=noise, num_steps=steps)

    def loss(self, inputs: ModelInput, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Unreduced flow-matching loss ``[B, H, D]``."""
        self.policy.config.chunk_size = noise.shape[1]
        self.policy.train()
        return self.policy.model.forward(*self._inputs(inputs), actions, noise, t)


@contextlib.contextmanager
def _sizes(config: PolicyConfig):
    """While it is in force LeRobot builds networks of these sizes; with pi0.5's own nothing changes."""
    from lerobot.policies.pi05 import modeling_pi05 as module

    vlm, vision, expert = config.vlm, config.vision, config.expert
    heads = {"num_heads": vlm.heads, "num_kv_heads": vlm.kv_heads, "head_dim": vlm.head_dim, "depth": vlm.depth}
    variants = {
        VLM: module.GemmaConfig(width=vlm.width, mlp_dim=vlm.mlp, **heads),
        EXPERT: module.GemmaConfig(width=expert.width, mlp_dim=expert.mlp, **heads),
    }
    build_vlm, build_expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def vlm_of_size(config: Any) -> Any:
        config._vocab_size = config.image_token_index = config.text_config.vocab_size = vlm.vocab
        config.projection_dim = config.vision_config.projection_dim = vlm.width
        config.vision_config.hidden_size, config.vision_config.intermediate_size = vision.width, vision.mlp
        config.vision_config.num_hidden_layers = vision.depth
        config.vision_config.num_attention_heads = vision.heads
        config.vision_config.patch_size = vision.patch
        return build_vlm(config=config)

    def expert_of_size(config: Any) -> Any:
        config.vocab_size = vlm.vocab
        return build_expert(config=config)

    with (
        mock.patch.object(module, "get_gemma_config", variants.__getitem__),
        mock.patch.object(module, "PaliGemmaForConditionalGenerationWithPiGemma", vlm_of_size),
        mock.patch.object(module, "PiGemmaForCausalLM", expert_of_size),
    ):
        yield
