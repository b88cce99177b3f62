"""Host memory in slots, pinned where a GPU is to read it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from z1.errors import ConfigError

SLAB_BYTES = 1 << 30
MAX_SLOTS = 1024
STEPS = 16
"""Parts of a power of two that slot sizes come in; at most an eighth of a large slot is unused."""

ALIGNMENT = 64


def slot_size(nbytes: int) -> int:
    """The size of the slot that holds so many bytes: a power of two in sixteenths."""
    step = max((1 << (nbytes - 1).bit_length()) // STEPS, ALIGNMENT)
    return -(-nbytes // step) * step


class HostMemory:
    """Tensors of similar sizes, taken and given back many times.

    Pinning is slow and rounds sizes up to a power of two, so that slabs of many slots are pinned at once and kept.

    Args:
        budget: Most bytes.
        pinned: Whether copies to and from a GPU can run beside the CPU.

    Attributes:
        used: Bytes of slots in use.
    """

    def __init__(self, budget: int, *, pinned: bool) -> None:
        self.used = 0
        self._left = budget
        self._pinned = pinned
        self._free: dict[int, list[Tensor]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """A tensor with any values, contiguous; None when the budget is spent.

        Raises:
            ConfigError: The machine has less memory than the budget.
        """
        nbytes = prod(shape) * dtype.itemsize
        size = slot_size(nbytes)
        free = self._free.setdefault(size, [])
        if not free:
            free += self._slab(size)
        if not free:
            return None
        self.used += size
        return free.pop()[:nbytes].view(dtype).view(shape)

    def give_back(self, tensor: Tensor) -> None:
        """Takes back what ``take`` gave; the caller uses it no more."""
        size = slot_size(tensor.nbytes)
        start = tensor.storage_offset() * tensor.itemsize
        storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        self._free[size].append(storage[start : start + size])
        self.used -= size

    def _slab(self, size: int) -> list[Tensor]:
        """New slots, as many as fit a slab and the budget."""
        count = min(max(SLAB_BYTES // size, 1), MAX_SLOTS, self._left // size)
        if not count:
            return []
        try:
            slab = torch.empty(count * size, dtype=torch.uint8, pin_memory=self._pinned)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"cannot get {count * size / 1e9:.1f} GB of host memory for VLM prefixes: {reason}; "
                "lower update.prefix_host_gb"
            ) from None
        self._left -= count * size
        return list(slab.split(size))
