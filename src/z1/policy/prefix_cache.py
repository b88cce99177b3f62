"""VLM prefixes of an iteration's observations, kept from acting through all update epochs under a memory budget.

    encoded while acting ─► device memory ─ full ─► host memory ─ full ─► the observation itself, to be encoded again
                                   └──────── a microbatch's prefixes ────────┘

Exact as long as the VLM's weights do not change, so it is for a frozen VLM only: an entry that was encoded with other
weights is refused. Where an entry lies is settled when it is added and does not change what is computed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from z1.policy.host_memory import HostMemory
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.trainable import is_expert

UNLIMITED = 1 << 62
Version = tuple[int, ...]


class StalePrefixError(RuntimeError):
    """A stored prefix was asked for that the VLM's present weights did not make, or that was given up."""


@dataclass(slots=True, kw_only=True)
class PrefixCounters:
    """What a store was asked for, in rows of microbatches; cumulative.

    Attributes:
        device_hits: Rows whose prefix lay in device memory.
        host_hits: Rows whose prefix lay in host memory.
        recomputed: Observations that were encoded again.
    """

    device_hits: int = 0
    host_hits: int = 0
    recomputed: int = 0


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One observation. Either ``pair`` or ``inputs`` is there.

    Attributes:
        version: Weights that encoded it.
        mask: bool ``[L]`` on the CPU, tokens that count.
        pair: ``[2, depth, L, kv_heads * head_dim]``, keys and values.
        on_host: Whether ``pair`` lies in the host's part of the budget.
        inputs: The observation, on the CPU, with the tokens that it was encoded with.
    """

    version: Version
    mask: Tensor
    pair: Tensor | None = None
    on_host: bool = False
    inputs: ModelInput | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPrefixes:
    """The VLM prefixes of N rows, by reference: rows that share an observation share its bytes.

    Attributes:
        store: Where they are.
        ids: int64 ``[N]`` on the CPU, the observations' numbers in the store.
        length: L, tokens to which ``fetch`` pads every row.
        full: Whether every token of every row counts.
    """

    store: PrefixStore
    ids: Tensor
    length: int
    full: bool

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> StoredPrefixes:
        """Some rows, by integer index."""
        return StoredPrefixes(store=self.store, ids=self.ids[index.cpu()], length=self.length, full=self.full)

    @staticmethod
    def concat(parts: Sequence[StoredPrefixes]) -> StoredPrefixes:
        """Rows of several parts of one store, in order."""
        longest = max(part.length for part in parts)
        return StoredPrefixes(
            store=parts[0].store,
            ids=torch.cat([part.ids for part in parts]),
            length=longest,
            full=all(part.full and part.length == longest for part in parts),
        )

    def begin(self) -> PendingPrefixes:
        """Starts copying what lies in host memory; see ``PrefixStore.begin``."""
        return self.store.begin(self)

    def fetch(self) -> PrefixCache:
        """The prefixes, on the network's device."""
        return self.begin().result()


class PrefixStore:
    """Keys and values of observations, by number.

    Args:
        model: The network whose VLM encodes.
        device_bytes: Most memory of the network's device to use.
        host_bytes: Most host memory to use once that is full; pinned where the device is a GPU. Both 0: nothing is
            kept, every prefix is computed again for each pass over it.
    """

    def __init__(self, model: Pi05, *, device_bytes: int = UNLIMITED, host_bytes: int = 0) -> None:
        self.counters = PrefixCounters()
        self.device_bytes = 0
        self._model = model
        self._vlm = [p for name, p in model.named_parameters() if not is_expert(name)]
        self._device_budget = device_bytes
        self._host = HostMemory(host_bytes, pinned=model.device.type == "cuda")
        self._entries: dict[int, _Entry] = {}
        self._next = 0
        self._copies = _Copies(model.device)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def host_bytes(self) -> int:
        """Host memory in use."""
        return self._host.used

    def version(self) -> Version:
        """Changes whenever a parameter of the VLM is moved or written to, other than through its ``data``."""
        return tuple(number for p in self._vlm for number in (p.data_ptr(), p._version))

    def add(self, prefix: PrefixCache, inputs: ModelInput) -> StoredPrefixes:
        """Keeps prefixes that were just encoded.

        Args:
            prefix: B prefixes without gradient.
            inputs: What they were encoded from.

        Returns:
            The B rows.
        """
        version, masks = self.version(), prefix.mask.cpu()
        encoded: ModelInput | None = None
        first = self._next
        for row, mask in enumerate(masks.unbind()):
            entry = _Entry(version=version, mask=mask)
            if not self._place(entry, prefix.keys[row], prefix.values[row]):
                encoded = encoded or self._as_encoded(inputs, len(mask)).to("cpu")
                entry.inputs = encoded.rows(torch.tensor([row]))
            self._entries[first + row] = entry
        self._next += len(prefix)
        return StoredPrefixes(
            store=self, ids=torch.arange(first, self._next), length=prefix.mask.shape[1], full=prefix.full
        )

    def begin(self, rows: StoredPrefixes) -> PendingPrefixes:
        """Gathers rows. Copies from host memory run beside whatever the device computes until ``result`` is called.

        Raises:
            StalePrefixError: A row was encoded with other weights, or given up.
        """
        entries = self._checked(rows.ids.tolist())
        vlm, device = self._model.config.vlm, self._model.device
        on_host: list[tuple[Tensor, Tensor]] = []
        missing: dict[int, list[int]] = {}
        whole = all(len(entry.mask) == rows.length for entry in entries)
        kept = [entry.pair for entry in entries if entry.pair is not None and not entry.on_host]
        if whole and len(kept) == len(entries):
            pair, mask = torch.stack(kept, dim=1), torch.stack([entry.mask for entry in entries])
        else:
            shape = (2, len(entries), vlm.depth, rows.length, vlm.kv_heads * vlm.head_dim)
            make = torch.empty if whole else torch.zeros
            pair = make(shape, dtype=self._model.vlm.last.kv.weight.dtype, device=device)
            mask = torch.zeros(len(entries), rows.length, dtype=torch.bool)
            for row, (number, entry) in enumerate(zip(rows.ids.tolist(), entries, strict=True)):
                mask[row, : len(entry.mask)] = entry.mask
                target = pair[:, row, :, : len(entry.mask)]
                if entry.pair is None:
                    missing.setdefault(number, []).append(row)
                elif entry.on_host:
                    on_host.append((target, entry.pair))
                else:
                    target.copy_(entry.pair)
        self.counters.device_hits += len(kept)
        self.counters.host_hits += len(on_host)
        with self._copies.beside(pair):
            for target, source in on_host:
                target.copy_(source, non_blocking=True)
        return PendingPrefixes(
            store=self,
            pair=pair,
            mask=mask.to(device),
            full=rows.full,
            missing=missing,
            copied=self._copies.mark() if on_host else None,
        )

    def recompute(self, missing: dict[int, list[int]], pair: Tensor) -> None:
        """Encodes observations and puts them in their rows.

        Those that were encoded with equally many tokens go together, padded as they were the first time.

        Args:
            missing: Rows by observation.
            pair: ``[2, B, depth, L, kv_heads * head_dim]``.
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for number in missing:
            inputs = self._entries[number].inputs
            assert inputs is not None
            alike.setdefault((inputs.images.shape[1], inputs.tokens.shape[1]), []).append(number)
        for numbers in alike.values():
            parts = [inputs for number in numbers if (inputs := self._entries[number].inputs) is not None]
            with torch.no_grad():
                prefix = self._model.encode_prefix(ModelInput.concat(parts).to(self._model.device), trim=False)
            length = prefix.mask.shape[1]
            for place, number in enumerate(numbers):
                for row in missing[number]:
                    pair[0, row, :, :length] = prefix.keys[place]
                    pair[1, row, :, :length] = prefix.values[place]
            self.counters.recomputed += len(numbers)

    def retain(self, ids: Iterable[int]) -> None:
        """Gives up everything but some observations."""
        wanted = set(ids)
        self.release(number for number in list(self._entries) if number not in wanted)

    def release(self, ids: Iterable[int]) -> None:
        """Gives up some observations; those that are gone already do not matter."""
        for number in ids:
            entry = self._entries.pop(number, None)
            if entry is None or entry.pair is None:
                continue
            if entry.on_host:
                self._host.give_back(entry.pair)
            else:
                self.device_bytes -= entry.pair.nbytes

    def state(self, ids: Iterable[int]) -> dict[str, Tensor]:
        """Some observations as tensors by name, for a checkpoint; keys and values where they are kept."""
        self._copies.finish()
        tensors = {"next": torch.tensor(self._next)}
        for number in sorted(set(ids)):
            entry = self._entries[number]
            tensors[f"{number}.mask"] = entry.mask
            if entry.pair is not None:
                tensors[f"{number}.{'host' if entry.on_host else 'device'}"] = entry.pair
            if entry.inputs is not None:
                tensors |= {f"{number}.inputs.{f.name}": getattr(entry.inputs, f.name) for f in fields(ModelInput)}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what ``state`` gave, for the network's present weights, each to where it was."""
        version = self.version()
        self._next = int(tensors["next"])
        for number in sorted(int(name.split(".")[0]) for name in tensors if name.endswith(".mask")):
            entry = _Entry(version=version, mask=tensors[f"{number}.mask"].cpu())
            if f"{number}.inputs.tokens" in tensors:
                entry.inputs = ModelInput(
                    **{f.name: tensors[f"{number}.inputs.{f.name}"].cpu() for f in fields(ModelInput)}
                )
            else:
                on_host = f"{number}.host" in tensors
                keys, values = tensors[f"{number}.{'host' if on_host else 'device'}"]
                assert (on_host and self._place_on_host(entry, keys, values)) or self._place(
                    entry, keys, values, regardless=True
                )
            self._entries[number] = entry

    def _as_encoded(self, inputs: ModelInput, length: int) -> ModelInput:
        """Inputs whose prefixes have so many tokens: as they are, or trimmed."""
        whole = inputs.image_mask.shape[1] * self._model.config.vision.tokens + inputs.tokens.shape[1]
        return inputs if whole == length else inputs.trimmed()

    def _checked(self, ids: list[int]) -> list[_Entry]:
        version = self.version()
        entries = []
        for number in ids:
            entry = self._entries.get(number)
            if entry is None:
                raise StalePrefixError(f"the VLM prefix of observation {number} was given up; nothing may ask for it")
            if entry.version != version:
                raise StalePrefixError(
                    f"the VLM prefix of observation {number} was computed with other weights than the VLM has now"
                )
            entries.append(entry)
        return entries

    def _place(self, entry: _Entry, keys: Tensor, values: Tensor, *, regardless: bool = False) -> bool:
        """Copies keys and values into the first memory with room, or regardless into device memory."""
        nbytes = keys.nbytes + values.nbytes
        if regardless or self.device_bytes + nbytes <= self._device_budget:
            entry.pair = torch.stack((keys, values)).to(self._model.device)
            self.device_bytes += nbytes
            return True
        return self._place_on_host(entry, keys, values)

    def _place_on_host(self, entry: _Entry, keys: Tensor, values: Tensor) -> bool:
        """Copies keys and values into host memory, beside whatever the device computes next; False without room."""
        pair = self._host.take((2, *keys.shape), keys.dtype)
        if pair is not None:
            entry.pair, entry.on_host = pair, True
            with self._copies.beside(keys, values):
                pair[0].copy_(keys, non_blocking=True)
                pair[1].copy_(values, non_blocking=True)
        return pair is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPrefixes:
    """Rows on their way to the device.

    Attributes:
        store: Where they come from.
        pair: ``[2, B, depth, L, kv_heads * head_dim]``, complete but for what is missing or being copied.
        mask: bool ``[B, L]``.
        full: Whether every token counts.
        missing: Rows by observation that has to be encoded again.
        copied: Marks the end of the copies; None when there are none on a stream of their own.
    """

    store: PrefixStore
    pair: Tensor
    mask: Tensor
    full: bool
    missing: dict[int, list[int]] = field(default_factory=dict)
    copied: torch.cuda.Event | None = None

    def result(self) -> PrefixCache:
        """The prefixes; later work on the device waits for them, the CPU does not."""
        if self.copied is not None:
            torch.cuda.current_stream(self.pair.device).wait_event(self.copied)
        if self.missing:
            self.store.recompute(self.missing, self.pair)
        return PrefixCache(keys=self.pair[0], values=self.pair[1], mask=self.mask, full=self.full)


class _Copies:
    """Copies between host and device: on a GPU on a stream of their own, elsewhere at once.

    All of them run in the order in which they were begun, so that host memory which is given back and taken again is
    not written before it was read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self, *tensors: Tensor) -> Iterator[None]:
        """Runs the block's copies after the work begun so far and beside what comes next.

        Args:
            tensors: On the device, read or written by the copies; their memory is not reused before they end.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        for tensor in tensors:
            if tensor.device.type == "cuda":
                tensor.record_stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """The end of the copies begun so far."""
        return None if self._stream is None else self._stream.record_event()

    def finish(self) -> None:
        """Waits, on the CPU, until the copies begun so far are done."""
        if self._stream is not None:
            self._stream.synchronize()
