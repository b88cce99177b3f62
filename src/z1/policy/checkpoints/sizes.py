"""A network's sizes from the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

from z1.policy.config import ExpertConfig, PolicyConfig, VisionConfig, VlmConfig
from z1.policy.tensor_files import Shape
from z1.policy.weights import EMBEDDING, EXPERT, LANGUAGE, VISION

PUBLISHED = PolicyConfig.pi05()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the tensors tell: all but the image encoder's heads, horizon and prompt length.

    Attributes:
        vision: Width, depth, MLP, patch and image size of the image encoder.
        vlm: Width, depth, MLP and vocabulary of the VLM.
        queries: Rows of its query projection.
        pairs: Rows of its key projection.
        expert: The action expert.
        action_dim: D.
    """

    vision: tuple[int, int, int, int, int]
    vlm: tuple[int, int, int, int]
    queries: int
    pairs: int
    expert: tuple[int, int]
    action_dim: int

    @property
    def vision_heads(self) -> int | None:
        """Heads of the image encoder where it is as wide and as deep as the published one (SigLIP So400m)."""
        published = PUBLISHED.vision
        return published.heads if self.vision[:2] == (published.width, published.depth) else None

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.vision[4]

    @property
    def vlm_width(self) -> int:
        """Features of a token of the VLM."""
        return self.vlm[0]

    def config(
        self,
        *,
        vision_heads: int,
        layout: tuple[int, int, int] | None,
        horizon: int,
        max_tokens: int,
        initial_gate: float = 0.0,
    ) -> PolicyConfig:
        """The whole of a network's sizes.

        Args:
            vision_heads: Heads of the image encoder.
            layout: Heads, key heads and head dims; None: one key head, as in every pi0.5.
            horizon: H.
            max_tokens: Most prompt tokens.
            initial_gate: See ``PolicyConfig``.

        Raises:
            ConfigError: They do not make a network.
        """
        heads, kv_heads, head_dim = layout or (max(self.queries // self.pairs, 1), 1, self.pairs)
        width, depth, mlp, patch, image_size = self.vision
        return PolicyConfig(
            vision=VisionConfig(
                width=width, depth=depth, heads=vision_heads, mlp=mlp, patch=patch, image_size=image_size
            ),
            vlm=VlmConfig(
                width=self.vlm[0],
                depth=self.vlm[1],
                mlp=self.vlm[2],
                vocab=self.vlm[3],
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
            ),
            expert=ExpertConfig(width=self.expert[0], mlp=self.expert[1]),
            horizon=horizon,
            action_dim=self.action_dim,
            max_tokens=max_tokens,
            initial_gate=initial_gate,
        )

    @classmethod
    def of_config(cls, config: PolicyConfig) -> Sizes:
        """The sizes of a network that is known."""
        vision, vlm = config.vision, config.vlm
        return cls(
            vision=(vision.width, vision.depth, vision.mlp, vision.patch, vision.image_size),
            vlm=(vlm.width, vlm.depth, vlm.mlp, vlm.vocab),
            queries=vlm.heads * vlm.head_dim,
            pairs=vlm.kv_heads * vlm.head_dim,
            expert=(config.expert.width, config.expert.mlp),
            action_dim=config.action_dim,
        )

    @classmethod
    def of_foreign(cls, shapes: Mapping[str, Shape]) -> Sizes:
        """The sizes of a network of openpi or LeRobot.

        A tensor that is not there, or has another number of axes, leaves the published size in its place: comparing
        names and shapes then lists it with everything else that is wrong.

        Args:
            shapes: By openpi's names, the embedding under its own.
        """

        def size(name: str, axis: int, axes: int, published: int) -> int:
            shape = shapes.get(name, ())
            return shape[axis] if len(shape) == axes and shape[axis] > 0 else published

        vision, vlm, expert = PUBLISHED.vision, PUBLISHED.vlm, PUBLISHED.expert
        patch_name = f"{VISION}.embeddings.patch_embedding.weight"
        patch = size(patch_name, 2, 4, vision.patch)
        tokens = size(f"{VISION}.embeddings.position_embedding.weight", 0, 2, vision.tokens)
        first = f"{LANGUAGE}.layers.0"
        return cls(
            vision=(
                size(patch_name, 0, 4, vision.width),
                _layers(shapes, f"{VISION}.encoder.layers") or vision.depth,
                size(f"{VISION}.encoder.layers.0.mlp.fc1.weight", 0, 2, vision.mlp),
                patch,
                isqrt(tokens) * patch,
            ),
            vlm=(
                size(EMBEDDING, 1, 2, vlm.width),
                _layers(shapes, f"{LANGUAGE}.layers") or vlm.depth,
                size(f"{first}.mlp.gate_proj.weight", 0, 2, vlm.mlp),
                size(EMBEDDING, 0, 2, vlm.vocab),
            ),
            queries=size(f"{first}.self_attn.q_proj.weight", 0, 2, vlm.heads * vlm.head_dim),
            pairs=size(f"{first}.self_attn.k_proj.weight", 0, 2, vlm.kv_heads * vlm.head_dim),
            expert=(
                size("action_in_proj.weight", 0, 2, expert.width),
                size(f"{EXPERT}.layers.0.mlp.gate_proj.weight", 0, 2, expert.mlp),
            ),
            action_dim=size("action_in_proj.weight", 1, 2, PUBLISHED.action_dim),
        )


def _layers(names: Iterable[str], prefix: str) -> int:
    """Number of layers, one more than the highest that occurs."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return max((int(match[1]) + 1 for name in names if (match := pattern.match(name))), default=0)
