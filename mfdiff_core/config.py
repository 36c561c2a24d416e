"""Configs are frozen dataclasses; this module moves them to and from plain mappings.

Every fault of a mapping is reported at once, each with its dotted path. A component checks its
own ranges in ``__post_init__`` by raising ``ValueError``; here that becomes a `ConfigError`.
One form of override, ``{"unet.channels": 64}``, serves the command line, search trials and
resumed runs alike.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mfdiff_core.errors import ConfigError

C = TypeVar("C")
TAG = "system"
"""Key that tells the configs of a union apart; its type lists the names a config answers to."""


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain mapping of a config, ready for JSON or YAML."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def flatten(config: Any) -> dict[str, Any]:
    """Config as ``{"unet.channels": 64, ...}``; sequences become text."""
    return dict(_flat(to_dict(config), ""))


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, str(value) if isinstance(value, list) else value))
    return rows


def from_dict(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Build config ``cls`` from ``values``; missing keys keep their defaults.

    Args:
        cls: a frozen dataclass whose fields are scalars, tuples, or further configs.
        values: nested mapping, for example parsed YAML.
        where: name of the source, put before each dotted path in messages.

    Raises:
        ConfigError: unknown keys (the valid ones are listed), wrong types, or ranges that
            ``cls`` refuses; all faults of the mapping in one message.
    """
    faults: list[str] = []
    config = _build(cls, values, where, faults)
    if faults or config is None:
        raise ConfigError("\n".join(faults))
    return config


def one_of(kinds: Any, values: Mapping[str, Any], where: str = "") -> Any:
    """Build the config among a union of classes that the ``system`` of ``values`` names.

    Args:
        kinds: union of config classes; the first is meant where ``values`` name none.
        values, where: see `from_dict`.

    Raises:
        ConfigError: no class is of that name, or as for `from_dict`.
    """
    faults: list[str] = []
    config = _convert(kinds, values, where, faults)
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def override(config: C, changes: Mapping[str, Any]) -> C:
    """Copy of ``config`` with dotted ``changes`` applied, checked like `from_dict`.

    An item of a sequence goes by its place: ``{"settings.0.low.psf_data_mm": 4.5}``.
    """
    nested = to_dict(config)
    faults = [fault for path in changes if (fault := _place(nested, path, changes[path]))]
    if faults:
        raise ConfigError("\n".join(faults))
    return from_dict(type(config), nested)


def _place(nested: dict[str, Any], path: str, value: Any) -> str | None:
    """Set the key at dotted ``path`` of ``nested``, or say why there is none."""
    node: Any = nested
    parts = path.split(".")
    for depth, part in enumerate(parts):
        here = ".".join(parts[: depth + 1])
        if not isinstance(node, dict | list):
            return f"{here}: {parts[depth - 1]} is a single value and has no keys"
        places = [str(i) for i in range(len(node))] if isinstance(node, list) else list(node)
        if part not in places:
            return _unknown(here, part, places)
        place: Any = int(part) if isinstance(node, list) else part
        if depth < len(parts) - 1:
            node = node[place]
    node[place] = value
    return None


def _unknown(path: str, key: str, valid: Any) -> str:
    return f"{path}: unknown key {key!r}; valid keys are {', '.join(sorted(valid))}"


def _build(cls: type[C], values: Any, path: str, faults: list[str]) -> C | None:
    if not isinstance(values, Mapping):
        faults.append(f"{path or cls.__name__}: expected a mapping, got {values!r}")
        return None
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    before = len(faults)
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in fields:
            faults.append(_unknown(dotted, str(key), fields))
            continue
        chosen[key] = _convert(hints[key], value, dotted, faults)
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            faults.append(f"{f'{path}.' if path else ''}{name}: missing")
    if len(faults) > before:
        return None
    try:
        return cls(**chosen)
    except ValueError as fault:
        faults.append(f"{path or cls.__name__}: {fault}")
        return None


def _convert(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    """``value`` as type ``hint``, or a line in ``faults``."""
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, path, faults)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if all(map(dataclasses.is_dataclass, args)) and isinstance(value, Mapping):
            return _convert_tagged(args, value, path, faults)
        attempts: list[list[str]] = []
        for option in (a for a in args if a is not type(None)):
            tried: list[str] = []
            converted = _convert(option, value, path, tried)
            if not tried:
                return converted
            attempts.append(tried)
        faults += attempts[0]
        return None
    if origin is Literal:
        if value not in args:
            faults.append(f"{path}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            faults.append(f"{path}: expected {len(inner)} values, got {len(value)}")
            return None
        pairs = zip(inner, value, strict=True)
        return tuple(_convert(h, v, f"{path}[{i}]", faults) for i, (h, v) in enumerate(pairs))
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(args[1], v, f"{path}.{k}", faults) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if hint is Any or (
        isinstance(value, expected) and (expected is bool) == isinstance(value, bool)
    ):
        return value
    faults.append(f"{path}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return None


def _convert_tagged(kinds: tuple[Any, ...], value: Any, path: str, faults: list[str]) -> Any:
    """A mapping as the one of several configs that its ``system`` names."""
    names = {name: kind for kind in kinds for name in get_args(get_type_hints(kind)[TAG])}
    tag = value.get(TAG, next(iter(names)))
    if tag in names:
        return _build(names[tag], value, path, faults)
    valid = ", ".join(map(repr, names))
    faults.append(f"{path}{'.' if path else ''}{TAG}: {tag!r} is not one of {valid}")
    return None
