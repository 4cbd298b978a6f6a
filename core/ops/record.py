"""Operations as JSON's own types and back, for the journal."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from core.ops import addressing, connections, docker, links, namespaces, place, settings, tuning, wanted

_CLASSES = {
    name: member
    for module in (addressing, connections, docker, links, namespaces, place, settings, tuning, wanted)
    for name, member in vars(module).items()
    if is_dataclass(member) and isinstance(member, type)
}


def to_record(value: Any) -> Any:
    """An operation, and what it is made of, as objects with the class's name under "op"."""
    if is_dataclass(value) and not isinstance(value, type):
        made = {field.name: to_record(getattr(value, field.name)) for field in fields(value)}
        return {"op": type(value).__name__, **made}
    return [to_record(item) for item in value] if isinstance(value, tuple) else value


def from_record(record: Any) -> Any:
    """The operation again. Raises ValueError for a record that no version of ours wrote."""
    if isinstance(record, list):
        return tuple(from_record(item) for item in record)
    if not isinstance(record, dict):
        return record
    values = {name: from_record(value) for name, value in record.items() if name != "op"}
    try:
        return _CLASSES[record["op"]](**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an operation: {record!r}") from error
