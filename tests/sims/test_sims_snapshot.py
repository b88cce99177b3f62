"""The snapshot codec: every value comes back as it was, damage is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from z1.errors import SimulatorError
from z1.sims.snapshot import (
    GeneratorState,
    SimState,
    Snapshot,
    copy_value,
    decode_snapshot,
    encode_snapshot,
    is_live_view,
)

ATTRIBUTES: dict[str, Any] = {
    "none": None,
    "flag": True,
    "count": 3,
    "large": 1 << 100,
    "ratio": 0.1,
    "tiny": 5e-324,
    "endless": float("-inf"),
    "name": "stick",
    "vector": np.array([0.1, -0.0, np.nan]),
    "scalar": np.float64(0.3),
    "single": np.float32(0.3),
    "list": [1, [2.5, np.arange(3)]],
    "pair": (1, "two"),
    "settings": {"angle": 0.3, "position": np.ones(3, np.float32), 4: "four"},
    "generator": np.random.default_rng(3),
}


def make_snapshot(**changes: Any) -> Snapshot:
    attributes = {name: copy_value(value, name) for name, value in ATTRIBUTES.items()}
    state = SimState(
        task="hammer",
        physics=np.linspace(0, 1, 20),
        model={"body_pos": np.ones((4, 3)), "site_pos": np.zeros((2, 3))},
        attributes=attributes,
        views=("init_left_pad",),
        observation=np.arange(39.0),
    )
    fields = {"simulator": "metaworld", "version": "3.1.1", "seed": 5, "steps": 45, "ended": False, "state": state}
    return Snapshot(**{**fields, **changes})


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, GeneratorState):
        assert_same(found.state, expected.state)
    else:
        assert repr(found) == repr(expected)


def test_every_value_comes_back_bit_by_bit() -> None:
    snapshot = make_snapshot()
    found = decode_snapshot(encode_snapshot(snapshot))
    for name, value in snapshot.state.attributes.items():
        assert_same(found.state.attributes[name], value)
    for field in dataclasses.fields(Snapshot):
        if field.name != "state":
            assert_same(getattr(found, field.name), getattr(snapshot, field.name))
    assert_same(found.state.physics, snapshot.state.physics)
    assert_same(found.state.observation, snapshot.state.observation)
    assert_same(found.state.model, snapshot.state.model)
    assert (found.state.task, found.state.views) == ("hammer", ("init_left_pad",))
    assert found.state.physics.flags.writeable


def test_a_restored_generator_draws_the_same_numbers() -> None:
    state = decode_snapshot(encode_snapshot(make_snapshot())).state.attributes["generator"]
    generator = np.random.default_rng(99)
    generator.bit_generator.state = state.state
    assert generator.random() == np.random.default_rng(3).random()


def test_equal_states_give_equal_bytes_in_any_order_of_attributes() -> None:
    snapshot = make_snapshot()
    reordered = dataclasses.replace(snapshot.state, attributes=dict(reversed(list(snapshot.state.attributes.items()))))
    assert encode_snapshot(snapshot) == encode_snapshot(dataclasses.replace(snapshot, state=reordered))
    assert encode_snapshot(snapshot) != encode_snapshot(dataclasses.replace(snapshot, steps=46))


@pytest.mark.parametrize("position", [12, 100, 1000, -20, -1])
def test_a_changed_bit_is_refused(position: int) -> None:
    data = bytearray(encode_snapshot(make_snapshot()))
    data[position] ^= 1
    with pytest.raises(SimulatorError, match="damaged snapshot: its fingerprint is"):
        decode_snapshot(bytes(data))


def test_truncated_and_foreign_bytes_are_refused() -> None:
    data = encode_snapshot(make_snapshot())
    with pytest.raises(SimulatorError, match="damaged snapshot"):
        decode_snapshot(data[:-5])
    for foreign in (b"", b"PK\x03\x04" + bytes(100), data[:10]):
        with pytest.raises(SimulatorError, match="not a snapshot: expected bytes that start with b'z1snap"):
            decode_snapshot(foreign)


def test_another_format_version_is_refused() -> None:
    body = encode_snapshot(make_snapshot())[:-16].replace(b'"version":1,', b'"version":9,', 1)
    data = body + hashlib.blake2b(body, digest_size=16).digest()
    with pytest.raises(SimulatorError) as caught:
        decode_snapshot(data)
    found = "the snapshot has format z1.snapshot 9, this z1 reads z1.snapshot 1"
    assert str(caught.value) == f"{found}; take the snapshot again with this version"


def test_unknown_types_are_refused_by_name() -> None:
    with pytest.raises(SimulatorError, match=r"attribute 'helper' of type builtins\.object cannot be part of a"):
        copy_value(object(), "helper")
    state = dataclasses.replace(make_snapshot().state, attributes={"words": np.array(["a"])})
    with pytest.raises(SimulatorError, match="an array of dtype <U1 cannot be part of a snapshot"):
        encode_snapshot(make_snapshot(state=state))


def test_copies_are_independent() -> None:
    original = {"a": [np.zeros(2)]}
    copied = copy_value(original, "x")
    original["a"][0][:] = 1
    assert copied["a"][0].tolist() == [0.0, 0.0]


def test_live_views_are_told_from_numpy_memory() -> None:
    foreign = np.frombuffer(bytearray(32), np.float64)
    assert is_live_view(foreign)
    assert is_live_view(foreign[1:][:2])
    assert not is_live_view(np.arange(6))
    assert not is_live_view(np.arange(6)[2:].reshape(2, 2))
