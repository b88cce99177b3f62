"""Safetensors files: read tensor by tensor straight into memory that exists, and written the same way.

A checkpoint's weights are one file or several with an index. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from z1.errors import CheckpointError
from z1.files import read_json

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Endings of files that run code when they are read."""

SHOWN = 5
"""Tensor names that an error lists of each kind."""

REMAP_BYTES = 32 * 2**20
"""Bytes after which a file is mapped anew, so that the pages that were read do not count as this process's memory."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Shape = tuple[int, ...]
OnBytes = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a tensor is.

    Attributes:
        path: File.
        key: Name in that file.
        shape: Shape.
        dtype: Name of the dtype in safetensors, ``F32``.
    """

    path: Path
    key: str
    shape: Shape
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in the file; 0 when the dtype is not one of weights."""
        return prod(self.shape) * (DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0)


class TensorFiles:
    """The tensors of one or several safetensors files, by name.

    Attributes:
        where: What was opened, for messages.
        tensors: Every tensor, without its values.
    """

    def __init__(self, where: str, paths: Iterable[Path], rename: Callable[[str], str] = str) -> None:
        """Reads the files' headers.

        Args:
            where: What is opened, for messages.
            paths: The files.
            rename: Makes the name to use of the name in a file.

        Raises:
            CheckpointError: A file is missing or damaged, or a name occurs twice.
        """
        self.where = where
        self.tensors: dict[str, Stored] = {}
        for path in paths:
            with opened(path) as file:
                for key in list(file.keys()):
                    name, view = rename(key), file.get_slice(key)
                    if name in self.tensors:
                        raise CheckpointError(
                            f"{where} holds {name} twice, as {self.tensors[name].key} and as {key}; remove one of them"
                        )
                    self.tensors[name] = Stored(
                        path=path, key=key, shape=tuple(view.get_shape()), dtype=str(view.get_dtype())
                    )
        self._open: tuple[Path, safe_open] | None = None
        self._mapped = 0

    @classmethod
    def of_folder(cls, folder: Path, rename: Callable[[str], str] = str) -> TensorFiles:
        """The weights of a checkpoint's folder: ``model.safetensors``, or the files that its index lists.

        Raises:
            CheckpointError: There are none, they are pickled, damaged, or not what the index says.
        """
        file, index = folder / MODEL_FILE, folder / INDEX_FILE
        if file.is_file() or not index.is_file():
            if not file.is_file():
                refuse_pickles(folder)
            return cls(str(file), [file], rename)
        value = read_json(index, CheckpointError)
        places = value.get("weight_map") if isinstance(value, dict) else None
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{index} has no weight_map from tensor names to file names; download it again")
        names = sorted(set(places.values()))
        odd = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if odd:
            raise CheckpointError(f"{index} names {odd[0]!r}; expected .safetensors files beside it")
        files = cls(str(index), [folder / name for name in names], rename)
        found = {stored.key: stored.path.name for stored in files.tensors.values()}
        wrong = sorted(key for key in {*found, *places} if found.get(key) != places.get(key))
        if wrong:
            raise CheckpointError(
                f"{index} and its files disagree about {len(wrong)} tensors ({_first(wrong)}); download them again"
            )
        return files

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def copy(self, name: str, target: Tensor) -> None:
        """Copies a tensor into memory of the same number of elements, converting its dtype.

        Raises:
            CheckpointError: It holds no floating point numbers, or the file is damaged.
        """
        stored = self.tensors[name]
        if stored.dtype not in DTYPES:
            raise CheckpointError(
                f"{stored.path} stores {stored.key} as {stored.dtype}; expected one of {', '.join(DTYPES)}"
            )
        if self._open is None or self._open[0] != stored.path or self._mapped > REMAP_BYTES:
            self._open, self._mapped = None, 0
            self._open = (stored.path, opened(stored.path))
        self._mapped += stored.nbytes
        try:
            with torch.no_grad():
                target.copy_(self._open[1].get_tensor(stored.key).reshape(target.shape))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{stored.path} is damaged: {error}; copy or save it again") from None

    def close(self) -> None:
        """Unmaps the file that was read last."""
        self._open = None


def opened(path: Path) -> safe_open:
    """Opens a safetensors file for reading.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; give the folder of a complete checkpoint")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy or save it again") from None


def refuse_pickles(path: Path) -> None:
    """Refuses weights that only a pickle holds; the file is not opened.

    Args:
        path: A file, or a folder without safetensors.

    Raises:
        CheckpointError: There are pickled weights.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pickled = [file.name for file in files if file.suffix in PICKLES]
    if pickled:
        raise CheckpointError(
            f"{path} holds pickled weights ({_first(pickled)}), which can run any code when they are read; z1 never "
            "does. Save them as safetensors with the program that wrote them"
        )


def check_tensors(where: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Compares names and shapes.

    Raises:
        CheckpointError: Lists what is missing, unknown and misshapen, all at once.
    """
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    misshapen = sorted(name for name in set(expected) & set(found) if tuple(expected[name]) != tuple(found[name]))
    problems = [
        _listed("missing", missing),
        _listed("unknown", unknown),
        _listed("of another shape", [f"{name} is {found[name]}, expected {expected[name]}" for name in misshapen]),
    ]
    if missing or unknown or misshapen:
        raise CheckpointError(
            f"{where} does not fit the network: {'; '.join(text for text in problems if text)}. "
            "Use the config.json that belongs to these weights."
        )


def _listed(kind: str, names: list[str]) -> str:
    return f"{len(names)} tensors {kind} ({_first(names)})" if names else ""


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor to write.

    Attributes:
        name: Name in the file.
        shape: Shape.
        dtype: Dtype.
        make: Gives the values, on any device; called once.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, entries: Iterable[Entry], metadata: Mapping[str, str], on_bytes: OnBytes | None = None
) -> None:
    """Writes a safetensors file with one tensor in memory at a time; the same tensor may have several names.

    Args:
        path: The file; the caller sees to it that a half-written one is never seen.
        entries: The tensors.
        metadata: Strings for the header.
        on_bytes: Told about progress.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in ordered:
        start, end = end, end + entry.nbytes
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in ordered:
            tensor = entry.make().detach().cpu().contiguous()
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), entry.name
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            done += entry.nbytes
            if on_bytes is not None:
                on_bytes(done, end)
