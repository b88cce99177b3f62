"""Full simulator states: plain Python objects inside a host, bytes outside of it.

A ``SimState`` holds everything that later env steps depend on. Inside a host it is kept as it is, because that is fast;
its arrays are never written to. ``encode_snapshot`` turns it into bytes that any process of the same simulator version
can restore: a JSON header, raw arrays and a fingerprint. Nothing is pickled.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from z1.errors import SimulatorError

SNAPSHOT_FORMAT = "z1.snapshot"
SNAPSHOT_VERSION = 1

_MAGIC = b"z1snap\r\n"
_PREFIX = struct.Struct("<8sI")
_FINGERPRINT_BYTES = 16
_SCALARS = frozenset({type(None), bool, int, float, str})
_ARRAY_KINDS = "buif"


@dataclass(frozen=True, slots=True)
class GeneratorState:
    """State of a ``numpy.random.Generator``.

    Attributes:
        state: The ``state`` of its bit generator.
    """

    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimState:
    """Everything that the next env steps of an episode depend on. Arrays are never changed once they are in here.

    Attributes:
        task: Task name without the simulator prefix.
        physics: float64, the physics engine's state vector.
        model: Arrays of the physics model that a scene or an env step changes, by field name.
        attributes: Python attributes of the simulator's environment, by name.
        views: Names of attributes that are live views of engine memory, sorted; they are not stored.
        observation: float64, the simulator's own full observation; scripted experts need it, policies never see it.
    """

    task: str
    physics: np.ndarray
    model: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    views: tuple[str, ...]
    observation: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A member of a pool, complete.

    Attributes:
        simulator: Simulator's short name.
        version: Version of the simulator and its physics engine.
        seed: Scene seed.
        steps: Env steps executed so far.
        ended: Whether the episode has ended.
        state: The simulator's state.
    """

    simulator: str
    version: str
    seed: int
    steps: int
    ended: bool
    state: SimState


def is_live_view(array: np.ndarray) -> bool:
    """Whether an array shows memory that does not belong to numpy, such as fields of ``mjData``."""
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None


def copy_value(value: Any, name: str) -> Any:
    """An independent copy of an attribute's value: arrays and containers are copied, immutable values shared.

    Raises:
        SimulatorError: The value has a type that snapshots do not know.
    """
    kind = type(value)
    if kind in _SCALARS or isinstance(value, np.generic):
        return value
    if kind is np.ndarray:
        return value.copy()
    if kind is list:
        return [copy_value(item, name) for item in value]
    if kind is tuple:
        return tuple([copy_value(item, name) for item in value])
    if kind is dict:
        return {key: copy_value(item, name) for key, item in value.items()}
    if kind is np.random.Generator:
        return GeneratorState(value.bit_generator.state)
    raise SimulatorError(
        f"attribute {name!r} of type {kind.__module__}.{kind.__qualname__} cannot be part of a snapshot"
    )


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot as bytes: prefix, JSON header, raw arrays, fingerprint. Equal states give equal bytes."""
    arrays: list[np.ndarray] = []
    state = snapshot.state
    header = {
        "format": SNAPSHOT_FORMAT,
        "version": SNAPSHOT_VERSION,
        "simulator": snapshot.simulator,
        "simulator_version": snapshot.version,
        "task": state.task,
        "seed": snapshot.seed,
        "steps": snapshot.steps,
        "ended": snapshot.ended,
        "physics": _pack(state.physics, arrays),
        "model": [[name, _pack(array, arrays)] for name, array in sorted(state.model.items())],
        "attributes": [[name, _pack(value, arrays)] for name, value in sorted(state.attributes.items())],
        "views": list(state.views),
        "observation": _pack(state.observation, arrays),
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    body = _PREFIX.pack(_MAGIC, len(text)) + text + b"".join(array.tobytes() for array in arrays)
    return body + fingerprint(body)


def decode_snapshot(data: bytes) -> Snapshot:
    """The snapshot in bytes from ``encode_snapshot``.

    Raises:
        SimulatorError: The bytes are damaged or of another format or version.
    """
    if len(data) < _PREFIX.size + _FINGERPRINT_BYTES or data[: len(_MAGIC)] != _MAGIC:
        raise SimulatorError(
            f"not a snapshot: expected bytes that start with {_MAGIC!r}, got {len(data)} bytes, {bytes(data[:8])!r}"
        )
    body, found = data[:-_FINGERPRINT_BYTES], data[-_FINGERPRINT_BYTES:]
    expected = fingerprint(body)
    if found != expected:
        raise SimulatorError(
            f"damaged snapshot: its fingerprint is {found.hex()}, its content gives {expected.hex()}; "
            "take the snapshot again"
        )
    end = _PREFIX.size + _PREFIX.unpack_from(data)[1]
    header = json.loads(body[_PREFIX.size : end])
    if (header["format"], header["version"]) != (SNAPSHOT_FORMAT, SNAPSHOT_VERSION):
        raise SimulatorError(
            f"the snapshot has format {header['format']} {header['version']}, this z1 reads {SNAPSHOT_FORMAT} "
            f"{SNAPSHOT_VERSION}; take the snapshot again with this version"
        )
    buffers = _Buffers(body, end)
    return Snapshot(
        simulator=header["simulator"],
        version=header["simulator_version"],
        seed=header["seed"],
        steps=header["steps"],
        ended=header["ended"],
        state=SimState(
            task=header["task"],
            physics=buffers.unpack(header["physics"]),
            model={name: buffers.unpack(value) for name, value in header["model"]},
            attributes={name: buffers.unpack(value) for name, value in header["attributes"]},
            views=tuple(header["views"]),
            observation=buffers.unpack(header["observation"]),
        ),
    )


def fingerprint(data: bytes) -> bytes:
    """16-byte blake2b hash."""
    return hashlib.blake2b(data, digest_size=_FINGERPRINT_BYTES).digest()


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """JSON for a value; arrays are appended in the order in which ``_Buffers.unpack`` meets them."""
    kind = type(value)
    if kind is float and not math.isfinite(value):
        return {"float": value.hex()}
    if kind in _SCALARS:
        return value
    if kind is np.ndarray or isinstance(value, np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in _ARRAY_KINDS:
            raise SimulatorError(f"an array of dtype {array.dtype} cannot be part of a snapshot")
        arrays.append(array)
        return {"array" if kind is np.ndarray else "scalar": [array.dtype.str, array.shape]}
    if kind is list:
        return [_pack(item, arrays) for item in value]
    if kind is tuple:
        return {"tuple": [_pack(item, arrays) for item in value]}
    if kind is dict:
        return {"dict": [[_pack(key, arrays), _pack(item, arrays)] for key, item in value.items()]}
    if kind is GeneratorState:
        return {"generator": _pack(dict(value.state), arrays)}
    raise SimulatorError(f"a value of type {kind.__module__}.{kind.__qualname__} cannot be part of a snapshot")


class _Buffers:
    """Reads the arrays of a snapshot, one after the other."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def _array(self, dtype_name: str, shape: list[int]) -> np.ndarray:
        dtype = np.dtype(dtype_name)
        count = math.prod(shape)
        array = np.frombuffer(self._data, dtype, count, self._offset).reshape(shape).copy()
        self._offset += count * dtype.itemsize
        return array

    def unpack(self, value: Any) -> Any:
        """The value of its JSON."""
        if isinstance(value, list):
            return [self.unpack(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "array":
            return self._array(*content)
        if kind == "scalar":
            return self._array(*content)[()]
        if kind == "float":
            return float.fromhex(content)
        if kind == "tuple":
            return tuple([self.unpack(item) for item in content])
        if kind == "dict":
            return {self.unpack(key): self.unpack(item) for key, item in content}
        assert kind == "generator", kind
        return GeneratorState(self.unpack(content))
