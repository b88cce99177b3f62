"""Settings as JSON and back."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

from z1.config.base import (
    require,
)
from z1.errors import ConfigError, UnknownNameError


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def config_from_dict(cls: type, data: dict[str, Any], *, source: str | Path) -> Any:
    """The config dataclass of ``config_to_dict``'s result.

    Args:
        cls: The dataclass.
        data: Plain values.
        source: Where they came from, for messages.

    Raises:
        ConfigError: A value is missing or not allowed.
        UnknownNameError: A setting is not known.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    for name in data:
        if name not in names:
            raise UnknownNameError(f"setting in {source}", name, names)
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = config_from_dict(hint, value, source=source)
        elif typing.get_origin(hint) is tuple:
            values[name] = (value,) if isinstance(value, str) else tuple(value)
        elif typing.get_origin(hint) is Literal:
            require(value in typing.get_args(hint), f"{name} in {source}", value, f"one of {typing.get_args(hint)}")
            values[name] = value
        else:
            require(
                isinstance(value, (hint, int) if hint is float else hint),
                f"{name} in {source}",
                value,
                f"of type {hint}",
            )
            values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{source} is incomplete: {error}") from None
