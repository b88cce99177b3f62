"""What a network keeps between denoise steps: tables of constant weights, and steps recorded as CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from z1.policy.past import AppendedPast, SharedPast

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``x_t`` float32 ``[B, H, D]`` and modulation to the velocity ``[B, H, D]``, against fixed prefixes."""

LENGTH_STEP = 32
"""Recorded prefixes are padded so that with the action tokens they are a multiple of this: prompts of similar length
share a recording, and attention kernels find the alignment that they want."""

WARM_UPS = 3


def roomy(length: int, horizon: int) -> int:
    """The padded length of a recorded prefix of L tokens before H action tokens."""
    return -(-(length + horizon) // LENGTH_STEP) * LENGTH_STEP - horizon


class ModulationTables:
    """Tables that depend on a time grid and on some weights, kept while somebody vouches for the weights.

    Outside ``opened`` nothing is kept. Inside, a change that torch counts gives a new table at once; one that it does
    not count (through ``.data``, or by a fused optimizer) is an assertion error at the latest when the scope closes.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._kept: dict[int, tuple[list[tuple[int, int]], Tensor]] = {}

    def open(self) -> None:
        """Somebody vouches for the weights; may be nested."""
        self._depth += 1

    def get(self, steps: int, weights: Iterable[Tensor], make: Callable[[int], Tensor]) -> Tensor:
        """The table of a grid.

        Args:
            steps: K, which names the grid.
            weights: What the table depends on.
            make: Computes it.
        """
        if not self._depth:
            return make(steps)
        version = [(weight.data_ptr(), weight._version) for weight in weights]
        known = self._kept.get(steps)
        if known is None or known[0] != version:
            known = self._kept[steps] = (version, make(steps))
        return known[1]

    def close(self, weights: Iterable[Tensor], make: Callable[[int], Tensor]) -> None:
        """Ends the outermost or a nested scope; the outermost checks and forgets.

        Args:
            weights: As for ``get``.
            make: As for ``get``.
        """
        self._depth -= 1
        if self._depth:
            return
        version = [(weight.data_ptr(), weight._version) for weight in weights]
        kept, self._kept = self._kept, {}
        for steps, (known, table) in kept.items():
            unchanged = known != version or torch.allclose(table, make(steps), rtol=1e-5, atol=1e-6)
            assert unchanged, "weights changed while constant_weights was in force, unseen by torch's version counters"

    def abandon(self) -> None:
        """Ends a scope in which something failed, without a check."""
        self._depth -= 1
        if not self._depth:
            self._kept = {}


class RecordedStep:
    """A denoise step whose inputs, prefixes and result stay at the same addresses.

    On a GPU it is recorded once and replayed: one launch instead of hundreds. The weights are read where they are, so a
    step of an optimizer is seen; a network whose parameters moved needs another recording.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, AppendedPast | SharedPast], Tensor],
        past: AppendedPast | SharedPast,
        x_t: Tensor,
        modulation: Tensor,
    ) -> None:
        """Records.

        Args:
            network: ``x_t``, modulation and past to velocity.
            past: Room for prefixes; ``past.fill`` puts them in.
            x_t: Gives shape, dtype and device.
            modulation: As ``x_t``.
        """
        self.past = past
        self._network = network
        self._x_t, self._modulation = torch.zeros_like(x_t), torch.zeros_like(modulation)
        self._graph: torch.cuda.CUDAGraph | None = None
        if x_t.is_cuda:
            side = torch.cuda.Stream(x_t.device)
            side.wait_stream(torch.cuda.current_stream(x_t.device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self._run()
            torch.cuda.current_stream(x_t.device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._run()

    def _run(self) -> Tensor:
        kind = self._x_t.device.type
        # Casts that autocast remembers would be those of the weights of today.
        with torch.autocast(
            kind,
            enabled=torch.is_autocast_enabled(kind),
            dtype=torch.get_autocast_dtype(kind),
            cache_enabled=False,
        ):
            return self._network(self._x_t, self._modulation, self.past)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, modulation: Tensor) -> Tensor:
        """The velocity; the result is the caller's own."""
        self._x_t.copy_(x_t)
        self._modulation.copy_(modulation)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._result.clone()


class RecordedSteps:
    """Recorded steps by shape, the most recently used ones. Copies of a network start without."""

    def __init__(self) -> None:
        self._steps: OrderedDict[Hashable, RecordedStep] = OrderedDict()
        self._addresses: list[int] = []

    def __len__(self) -> int:
        return len(self._steps)

    def __reduce__(self) -> tuple[type[RecordedSteps], tuple[()]]:
        return RecordedSteps, ()

    def get(
        self, key: Hashable, weights: Iterable[Tensor], limit: int, make: Callable[[], RecordedStep]
    ) -> RecordedStep:
        """The step of a shape.

        Args:
            key: Names everything that a recording depends on but the weights.
            weights: What the network computes with; when one has moved, all recordings are forgotten.
            limit: Most recordings to keep.
            make: Records.
        """
        addresses = [weight.data_ptr() for weight in weights]
        if addresses != self._addresses:
            self._steps.clear()
            self._addresses = addresses
        step = self._steps.pop(key, None)
        while len(self._steps) >= limit:
            self._steps.popitem(last=False)
        self._steps[key] = step or make()
        return self._steps[key]

    def clear(self) -> None:
        """Forgets all recordings."""
        self._steps.clear()
