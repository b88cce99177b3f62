"""Messages survive the way; damaged ones are noticed."""

from __future__ import annotations

import numpy as np
import pytest

from z1.errors import ProtocolError, RenderError, SimulatorError, UnknownNameError
from z1.sims.protocol import Message, MessageReader, decode_message, encode_message, error_body, error_of

MESSAGE = Message(
    name="step",
    number=7,
    body={"members": [1, 2], "text": "żółw", "nothing": None},
    arrays={
        "actions": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.int64),
        "strided": np.arange(10)[::3],
    },
)


def assert_equal(found: Message, expected: Message) -> None:
    assert (found.name, found.number, found.body) == (expected.name, expected.number, expected.body)
    assert list(found.arrays) == list(expected.arrays)
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_messages_survive_any_cut_of_the_stream() -> None:
    stream = encode_message(MESSAGE) + encode_message(Message(name="other", number=8))
    for step in (1, 7, 40, len(stream)):
        reader = MessageReader()
        messages = [m for start in range(0, len(stream), step) for m in reader.feed(stream[start : start + step])]
        assert [message.name for message in messages] == ["step", "other"]
        assert_equal(messages[0], MESSAGE)


@pytest.mark.parametrize("position", [0, 10, 30, 200, -1])
def test_a_changed_byte_is_noticed(position: int) -> None:
    stream = bytearray(encode_message(MESSAGE))
    stream[position] ^= 1
    reader = MessageReader()
    with pytest.raises(ProtocolError, match="damaged message"):
        reader.feed(bytes(stream) + bytes(1 << 12))


def test_foreign_bytes_are_refused() -> None:
    with pytest.raises(ProtocolError, match="damaged message: expected a z1 frame, got b'Traceback"):
        MessageReader().feed(b"Traceback (most recent call last)")


def test_announced_arrays_must_match_the_payload() -> None:
    header = b'{"name":"x","number":1,"body":{},"arrays":[["a","<f4",[2]]]}'
    assert decode_message(header, bytes(8)).arrays["a"].tolist() == [0.0, 0.0]
    for payload in (bytes(7), bytes(12)):
        with pytest.raises(ProtocolError, match="damaged message"):
            decode_message(header, payload)
    with pytest.raises(ProtocolError, match="has dtype object"):
        decode_message(header.replace(b"<f4", b"|O"), bytes(16))


def test_errors_keep_their_class_and_text() -> None:
    for error in (SimulatorError("a"), RenderError("b"), UnknownNameError("task", "door-opn", ["door-open"])):
        found = error_of(error_body(error))
        assert type(found) is type(error)
        assert str(found) == str(error)


def test_an_unexpected_error_shows_where_it_happened() -> None:
    found = error_of(error_body(ZeroDivisionError("division by zero"), "Traceback: line 3"))
    assert type(found) is SimulatorError
    assert str(found) == "ZeroDivisionError: division by zero\nTraceback: line 3"
