"""Convert operations to JSON types and back, for the journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

_CLASSES: dict[str, type] = {}
_BY_RECORD: dict[str, type] = {}
_NAMES: dict[type, str] = {}

_PLAIN: dict[str, type] = {"str": str, "int": int, "bool": int, "tuple": tuple, "None": type(None)}


def recorded[T: type](name: str = "") -> Callable[[T], T]:
    """Register a dataclass for the journal.

    `name` is its name there, if the class was renamed since then.
    """

    def register(kind: T) -> T:
        _CLASSES[kind.__name__] = kind
        _NAMES[kind] = name or kind.__name__
        _BY_RECORD[_NAMES[kind]] = kind
        return kind

    return register


def to_record(value: Any) -> Any:
    """Convert an operation and its parts to JSON objects.

    "op" is the name of the class.
    """
    if is_dataclass(value) and not isinstance(value, type):
        made = {field.name: to_record(getattr(value, field.name)) for field in fields(value)}
        return {"op": _NAMES[type(value)], **made}
    return [to_record(item) for item in value] if isinstance(value, tuple) else value


def from_record(record: Any) -> Any:
    """Convert a record back to an operation. Raises ValueError for an invalid record."""
    if isinstance(record, list):
        return tuple(from_record(item) for item in record)
    if not isinstance(record, dict):
        return record
    kind = record.get("op")
    made = _BY_RECORD.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise ValueError(f"unknown operation {kind!r}")
    values = {name: from_record(value) for name, value in record.items() if name != "op"}
    types = {field.name: str(field.type) for field in fields(made)}
    odd = [name for name, value in values.items() if not _fits(types.get(name, "?"), value)]
    if odd:
        raise ValueError(f"the operation {kind} has an unknown or invalid field {odd[0]}")
    try:
        return made(**values)
    except TypeError as error:
        raise ValueError(f"the operation {kind} lacks a field") from error


def _fits(field_type: str, value: Any) -> bool:
    """Return whether a value has the type of a field.

    The members of tuples are not checked.
    """
    kinds = [_PLAIN.get(kind) or _CLASSES.get(kind) for kind in field_type.split("[")[0].split(" | ")]
    return any(kind is None or isinstance(value, kind) for kind in kinds) and field_type != "?"
