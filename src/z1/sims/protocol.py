"""How a host and the main process speak: length-prefixed messages of a JSON header and raw numpy buffers.

A frame is ``magic, header length, payload length, checksum of header and payload, checksum of these four`` (little
endian), the JSON header and the payload. The header holds the message's name, its number, a JSON body and the name,
dtype and shape of each array in the payload. Nothing is pickled. Images do not travel here: they are written into
shared
memory.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from z1.errors import ProtocolError, RenderError, SimulatorError, UnknownNameError, Z1Error

PROTOCOL_VERSION = 4
"""Raised with every change of a message. Host and main process must agree."""

HELLO, HEARTBEAT, REPLY, ERROR = "hello", "heartbeat", "reply", "error"
"""Messages of a host: the handshake, a sign of life during a request, the answer to a request, its failure."""

_MAGIC = b"z1sm"
_PREFIX = struct.Struct("<4sIQI")
_CHECKSUM = struct.Struct("<I")
_PREFIX_BYTES = _PREFIX.size + _CHECKSUM.size
_ARRAY_KINDS = "buif"
_ERRORS: dict[str, type[Z1Error]] = {
    kind.__name__: kind for kind in (UnknownNameError, RenderError, ProtocolError, SimulatorError)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message in either direction.

    Attributes:
        name: What is asked or answered.
        number: Number of the request; its reply carries the same.
        body: JSON values.
        arrays: Arrays of booleans, integers or floats, by name.
    """

    name: str
    number: int = 0
    body: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def encode_message(message: Message) -> bytes:
    """The frame of a message."""
    arrays = {name: np.ascontiguousarray(array) for name, array in message.arrays.items()}
    for name, array in arrays.items():
        assert array.dtype.kind in _ARRAY_KINDS, f"array {name!r} has dtype {array.dtype}"
    header = json.dumps(
        {
            "name": message.name,
            "number": message.number,
            "body": message.body,
            "arrays": [[name, array.dtype.str, message.arrays[name].shape] for name, array in arrays.items()],
        },
        separators=(",", ":"),
    ).encode()
    payload = b"".join(array.tobytes() for array in arrays.values())
    prefix = _PREFIX.pack(_MAGIC, len(header), len(payload), zlib.crc32(payload, zlib.crc32(header)))
    return prefix + _CHECKSUM.pack(zlib.crc32(prefix)) + header + payload


def decode_message(header: bytes, payload: bytes) -> Message:
    """The message of a frame's header and payload.

    Raises:
        ProtocolError: The message is damaged.
    """
    try:
        fields = json.loads(header)
        arrays, offset = {}, 0
        for name, dtype_name, shape in fields["arrays"]:
            dtype = np.dtype(dtype_name)
            if dtype.kind not in _ARRAY_KINDS:
                raise ValueError(f"array {name!r} has dtype {dtype}")
            count = math.prod(shape)
            arrays[name] = np.frombuffer(payload, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
        if offset != len(payload):
            raise ValueError(f"{len(payload)} bytes of arrays, {offset} announced")
        return Message(name=fields["name"], number=fields["number"], body=fields["body"], arrays=arrays)
    except (ValueError, TypeError, KeyError) as problem:
        raise ProtocolError(f"damaged message: {problem}") from problem


class MessageReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Takes the next bytes of the stream.

        Returns:
            The messages that became complete.

        Raises:
            ProtocolError: The stream is damaged; nothing after this point can be read.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _PREFIX_BYTES:
            prefix = bytes(self._buffer[: _PREFIX.size])
            magic, header_bytes, payload_bytes, checksum = _PREFIX.unpack(prefix)
            if magic != _MAGIC or _CHECKSUM.unpack_from(self._buffer, _PREFIX.size) != (zlib.crc32(prefix),):
                raise ProtocolError(f"damaged message: expected a z1 frame, got {prefix!r}")
            middle = _PREFIX_BYTES + header_bytes
            end = middle + payload_bytes
            if len(self._buffer) < end:
                break
            header, payload = bytes(self._buffer[_PREFIX_BYTES:middle]), bytes(self._buffer[middle:end])
            if zlib.crc32(payload, zlib.crc32(header)) != checksum:
                raise ProtocolError("damaged message: the checksum does not match")
            del self._buffer[:end]
            messages.append(decode_message(header, payload))
        return messages


def error_body(error: BaseException, trace: str = "") -> dict[str, Any]:
    """The body of an ``ERROR`` message."""
    if isinstance(error, Z1Error):
        return {"error": type(error).__name__, "text": str(error), "trace": ""}
    return {"error": "", "text": f"{type(error).__name__}: {error}", "trace": trace}


def error_of(body: Mapping[str, Any]) -> Z1Error:
    """The exception that an ``ERROR`` message reports."""
    kind = _ERRORS.get(str(body.get("error")), SimulatorError)
    text = str(body.get("text"))
    if body.get("trace"):
        text += "\n" + str(body["trace"])
    error = kind.__new__(kind)
    error.args = (text,)
    return error
