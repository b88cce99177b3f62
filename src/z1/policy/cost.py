"""What a pi0.5 of any size costs in theory: floating point operations and bytes of prefixes, denoise steps and updates.

A multiplication and its addition are two operations. Matrix products and attention are counted, nothing else; at full
size the rest is below one percent. ``python -m z1.policy.cost`` prints docs/cost.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from z1.policy.config import PolicyConfig

Kind = Literal[
    "reference joint", "reference expert", "split joint", "split joint checkpointed", "split expert", "cached expert"
]
UPDATES: tuple[Kind, ...] = get_args(Kind)

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a processor can do at most.

    Attributes:
        name: Product name.
        flops: Floating point operations per second.
        bandwidth: Bytes per second between processor and memory.
    """

    name: str
    flops: float
    bandwidth: float

    def seconds(self, flops: float, nbytes: float = 0.0) -> float:
        """Least time of some work: limited by arithmetic or by memory."""
        return max(flops / self.flops, nbytes / self.bandwidth)


H200 = Device(name="NVIDIA H200, bfloat16", flops=790e12, bandwidth=4.3e12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Operations of the two passes of an update.

    Attributes:
        forward: Of the forward pass.
        backward: Of the backward pass, with what it computes again.
    """

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The costs of one sample: an observation with a chunk of actions.

    Attributes:
        config: Sizes of the network.
        cameras: V, images that are encoded.
        text: Text tokens that are encoded.
        horizon: H, action tokens.
    """

    config: PolicyConfig
    cameras: int
    text: int
    horizon: int

    @property
    def prefix_tokens(self) -> int:
        """L."""
        return self.cameras * self.config.vision.tokens + self.text

    @property
    def image(self) -> float:
        """Operations of an image through encoder and projector."""
        vision = self.config.vision
        layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp
        matrices = vision.depth * layer + self._patch + vision.width * self.config.vlm.width
        attention = 2 * vision.depth * vision.tokens**2 * vision.width
        return 2.0 * (vision.tokens * matrices + attention)

    @property
    def _patch(self) -> int:
        return 3 * self.config.vision.patch**2 * self.config.vision.width

    def _projections(self, width: int) -> tuple[int, int, int]:
        """Parameters of query, of key and value, and of the output."""
        vlm = self.config.vlm
        return (
            width * vlm.heads * vlm.head_dim,
            2 * width * vlm.kv_heads * vlm.head_dim,
            width * vlm.heads * vlm.head_dim,
        )

    def _layer(self, width: int, mlp: int) -> int:
        return sum(self._projections(width)) + 3 * width * mlp

    def _attention(self, queries: int, keys: int) -> float:
        """Operations of one layer's attention."""
        return 4.0 * queries * keys * self.config.vlm.heads * self.config.vlm.head_dim

    @property
    def vlm_token(self) -> float:
        """Operations of a token through the matrices of all layers of the VLM."""
        vlm = self.config.vlm
        return 2.0 * vlm.depth * self._layer(vlm.width, vlm.mlp)

    @property
    def tail(self) -> float:
        """Operations of the VLM's last layer beyond keys and values: no action depends on them, z1 leaves them out."""
        vlm, tokens = self.config.vlm, self.prefix_tokens
        _, key_value, _ = self._projections(vlm.width)
        return 2.0 * tokens * (self._layer(vlm.width, vlm.mlp) - key_value) + self._attention(tokens, tokens)

    def prefix(self, *, tail: bool = False) -> float:
        """Operations of encoding an observation.

        Args:
            tail: Whether the last layer is computed to its end.
        """
        tokens = self.prefix_tokens
        attention = self.config.vlm.depth * self._attention(tokens, tokens)
        whole = self.cameras * self.image + tokens * self.vlm_token + attention
        return whole if tail else whole - self.tail

    @property
    def action_token(self) -> float:
        """Operations of an action token through the matrices of all layers of the expert."""
        return 2.0 * self.config.vlm.depth * self._layer(self.config.expert.width, self.config.expert.mlp)

    @property
    def modulation(self) -> float:
        """Operations of all adaptive norms' numbers at one time."""
        return 2.0 * (2 * self.config.vlm.depth + 1) * 3 * self.config.expert.width**2

    def step(self, *, modulation: bool = True) -> float:
        """Operations of one denoise step of a chunk.

        Args:
            modulation: Whether the adaptive norms' numbers are computed, and not from a table.
        """
        keys = self.prefix_tokens + self.horizon
        attention = self.config.vlm.depth * self._attention(self.horizon, keys)
        width = self.config.expert.width
        ends = 4.0 * self.horizon * width * self.config.action_dim
        times = self.modulation + 4.0 * width**2 if modulation else 0.0
        return self.horizon * self.action_token + attention + ends + times

    def sample(self, steps: int) -> float:
        """Operations of encoding an observation and denoising a chunk.

        Args:
            steps: K.
        """
        return self.prefix() + steps * self.step()

    def update(self, kind: Kind) -> Passes:
        """Operations of forward and backward pass, one denoise step per chunk.

        ``reference``: prefix and action tokens in one graph with the tail, as LeRobot and RLinf run it; a frozen VLM is
        differentiated nevertheless, since its queries share an attention product with the expert's. ``split``: prefix
        first, without gradient where it is frozen. ``cached``: the frozen prefix is there already. ``checkpointed``:
        the forward pass is computed again in the backward pass.
        """
        step, vlm, tokens = self.step(), self.config.vlm, self.prefix_tokens
        if kind == "cached expert":
            return Passes(forward=step, backward=2 * step)
        pixels = 2.0 * self.cameras * self.config.vision.tokens * self._patch  # images need no gradient
        if kind.startswith("split"):
            prefix = self.prefix()
            if kind == "split expert":
                return Passes(forward=prefix + step, backward=2 * step)
            forward = prefix + step
            return Passes(
                forward=forward, backward=2 * forward - pixels + (forward if kind.endswith("checkpointed") else 0.0)
            )
        # The prefix's queries are multiplied with the action tokens' keys as well, and masked.
        crossing = vlm.depth * self._attention(tokens, self.horizon)
        forward = self.prefix(tail=True) + step + crossing
        unused = self.tail - self._attention(tokens, tokens) - 2.0 * tokens * self._projections(vlm.width)[0]
        if kind == "reference joint":
            return Passes(forward=forward, backward=2 * (forward - unused) - pixels)
        query, key_value, _ = self._projections(vlm.width)
        inputs = tokens * self.vlm_token - unused - 2.0 * tokens * (query + key_value)
        attention = vlm.depth * self._attention(tokens, tokens) + crossing
        return Passes(forward=forward, backward=inputs + 2 * (attention + step))

    def parameters(self, *, tail: bool = False) -> dict[str, int]:
        """Numbers of parameters by part.

        Args:
            tail: Whether those of the VLM's last layer and final norm are counted that no action depends on.
        """
        vision, vlm, width = self.config.vision, self.config.vlm, self.config.expert.width
        layer = self._layer(vlm.width, vlm.mlp) + 2 * vlm.width
        dead = layer - self._projections(vlm.width)[1] - vlm.width
        image_layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp + 9 * vision.width + vision.mlp
        expert_layers = vlm.depth * self._layer(width, self.config.expert.mlp)
        return {
            "image encoder": vision.depth * image_layer + self._patch + (vision.tokens + 3) * vision.width,
            "projector": (vision.width + 1) * vlm.width,
            "embedding": vlm.vocab * vlm.width,
            "vlm": vlm.depth * layer + (vlm.width if tail else -dead),
            "expert": expert_layers,
            "modulation": (2 * vlm.depth + 1) * 3 * width * (width + 1),
            "ends": 2 * self.config.action_dim * width + width + self.config.action_dim + 2 * width * (width + 1),
        }

    def prefix_bytes(self, *, itemsize: int = 2) -> int:
        """Bytes of an observation's keys and values."""
        vlm = self.config.vlm
        return 2 * vlm.depth * self.prefix_tokens * vlm.kv_heads * vlm.head_dim * itemsize

    def step_bytes(
        self, rows: int, *, prefixes: int | None = None, modulation: bool = True, itemsize: int = 2
    ) -> float:
        """Bytes that a denoise step reads and writes: weights, prefixes, and each matrix product's result once.

        Args:
            rows: B, chunks at a time.
            prefixes: How many prefixes they attend to; one each unless said.
            modulation: Whether the adaptive norms' numbers are computed.
            itemsize: Bytes of a number.
        """
        counts, vlm, expert = self.parameters(), self.config.vlm, self.config.expert
        weights = counts["expert"] + counts["ends"] + (counts["modulation"] if modulation else 0)
        heads = (2 * vlm.heads + 2 * vlm.kv_heads) * vlm.head_dim
        results = vlm.depth * (heads + 2 * expert.width + 2 * expert.mlp)
        activations = rows * self.horizon * results * itemsize
        return weights * itemsize + (prefixes or rows) * self.prefix_bytes(itemsize=itemsize) + activations

    def encode_bytes(self, *, itemsize: int = 2) -> float:
        """Bytes of the weights that encoding an observation reads, the tail included."""
        counts = self.parameters(tail=True)
        return sum(counts[part] for part in ("image encoder", "projector", "vlm")) * itemsize

    def sampling_seconds(self, device: Device, *, rows: int, steps: int, prefixes: int | None = None) -> float:
        """Least time of sampling chunks.

        Args:
            device: Where.
            rows: B, chunks.
            steps: K, denoise steps.
            prefixes: Different observations; one per chunk unless said.
        """
        count = prefixes or rows
        encoding = device.seconds(count * self.prefix(tail=True), self.encode_bytes())
        return encoding + steps * device.seconds(rows * self.step(), self.step_bytes(rows, prefixes=count))


def page() -> str:
    """docs/cost.md."""
    full = PolicyConfig.pi05()
    cases = [
        CostModel(config=full, cameras=3, text=200, horizon=50),
        CostModel(config=full, cameras=3, text=200, horizon=10),
        CostModel(config=full, cameras=2, text=40, horizon=10),
    ]
    names = ["3 cameras, 200 tokens, H = 50", "the same, H = 10", "2 cameras, 40 tokens, H = 10"]
    head = "| | " + " | ".join(names) + " |\n|---|" + "---|" * len(cases)

    def row(label: str, values: list[str]) -> str:
        return f"| {label} | " + " | ".join(values) + " |"

    lines = [
        "# What pi0.5 costs in theory",
        "",
        "Made by `python -m z1.policy.cost`. Operations of matrix products and attention per sample at full size; "
        f"milliseconds are the least that a {H200.name} ({H200.flops / TERA:.0f} TFLOP/s, "
        f"{H200.bandwidth / TERA:.1f} TB/s) could need. No number here is measured;",
        "benchmarks/policy_speed.py measures.",
        "",
        head,
        row("prefix tokens", [f"{c.prefix_tokens}" for c in cases]),
        row("encode a prefix, TFLOP", [f"{c.prefix() / TERA:.3f}" for c in cases]),
        row("with the last layer's tail, TFLOP", [f"{c.prefix(tail=True) / TERA:.3f}" for c in cases]),
        row("a denoise step, GFLOP", [f"{c.step() / GIGA:.2f}" for c in cases]),
        row("keys and values of a prefix, bfloat16, MB", [f"{c.prefix_bytes() / 1e6:.2f}" for c in cases]),
    ]
    for kind in UPDATES:
        label = f"update: {kind}, TFLOP (ms)"
        totals = [c.update(kind).total for c in cases]
        lines.append(row(label, [f"{t / TERA:.3f} ({H200.seconds(t) * 1e3:.2f})" for t in totals]))
    for rows, prefixes, label in ((1, 1, "1 chunk"), (16, 16, "16 chunks"), (16, 1, "16 of one observation")):
        times = [c.sampling_seconds(H200, rows=rows, steps=10, prefixes=prefixes) for c in cases]
        lines.append(row(f"sampling {label}, K = 10, ms", [f"{t * 1e3:.1f}" for t in times]))
    lines += [
        "",
        "`reference`: prefix and action tokens in one graph, as LeRobot and RLinf train; a frozen VLM is "
        "differentiated all the same. `split`: prefix first, without gradient where it is frozen.",
        "`cached`: the frozen prefix is kept from acting. Sampling counts the tail, as the reference does.",
        "",
        "Parameters: " + ", ".join(f"{name} {count:,}" for name, count in cases[0].parameters().items()) + "; together "
        f"{sum(cases[0].parameters().values()):,}, and {sum(cases[0].parameters(tail=True).values()):,} with the tail.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
