"""Ways of computing the same numbers with less work; each can be switched off, and tests compare on with off."""

from __future__ import annotations

from dataclasses import dataclass

from z1.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSettings:
    """What a network does to be quick, kept in ``Pi05.speed``. None of it changes a result beyond rounding."""

    trim: bool = True
    """Leave out cameras that no row has and text padding that all rows have, instead of masking them."""
    keep_modulation: bool = True
    """Compute the adaptive norms' numbers once per time grid while ``Pi05.constant_weights`` is in force."""
    append_in_place: bool = True
    """Without gradient: copy a prefix once per chunk, not once per layer and denoise step."""
    share_prefix: bool = True
    """Attend to one copy of a prefix that several rows have in common."""
    cuda_graph: bool = False
    """Record a denoise step once per shape and repeat it as one launch; on a CPU the same memory is used without a
    recording. For small batches on a GPU, which otherwise waits for launches."""
    graph_shapes: int = 8
    """Most shapes whose recordings are kept; the one that was not used for longest goes first."""
    graph_tokens: int = 2048
    """Most action tokens of a batch (rows times horizon) that is recorded; larger ones keep a GPU busy as they are."""

    def __post_init__(self) -> None:
        for name in ("graph_shapes", "graph_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
