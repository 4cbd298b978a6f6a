"""Operations as JSON's own types and back, for the journal."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from core.operations import (
    addresses,
    attachments,
    connections,
    docker,
    links,
    namespaces,
    settings,
    target,
    tuning,
)

_CLASSES = {
    name: member
    for module in (addresses, attachments, connections, docker, links, namespaces, settings, target, tuning)
    for name, member in vars(module).items()
    if is_dataclass(member) and isinstance(member, type)
}

# What the journal calls the classes that have got another name since it was first written.
_RECORDED = {"NetnsTarget": "Place", "PersistAttachment": "Want", "ForgetAttachment": "Unwant"}
_BY_RECORD = {_RECORDED.get(name, name): member for name, member in _CLASSES.items()}

_PLAIN: dict[str, type] = {"str": str, "int": int, "bool": int, "tuple": tuple, "None": type(None)}


def to_record(value: Any) -> Any:
    """An operation, and what it is made of, as objects with the class's name under "op"."""
    if is_dataclass(value) and not isinstance(value, type):
        made = {field.name: to_record(getattr(value, field.name)) for field in fields(value)}
        return {"op": _RECORDED.get(kind := type(value).__name__, kind), **made}
    return [to_record(item) for item in value] if isinstance(value, tuple) else value


def from_record(record: Any) -> Any:
    """The operation again. Raises ValueError for a record that no version of ours wrote."""
    if isinstance(record, list):
        return tuple(from_record(item) for item in record)
    if not isinstance(record, dict):
        return record
    kind = record.get("op")
    made = _BY_RECORD.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise ValueError(f"there is no operation {kind!r}")
    values = {name: from_record(value) for name, value in record.items() if name != "op"}
    wanted = {field.name: str(field.type) for field in fields(made)}
    odd = [name for name, value in values.items() if not _fits(wanted.get(name, "?"), value)]
    if odd:
        raise ValueError(f"the operation {kind} has no such {odd[0]}")
    try:
        return made(**values)
    except TypeError as error:
        raise ValueError(f"the operation {kind} is not complete") from error


def _fits(wanted: str, value: Any) -> bool:
    """Whether a value is of the type that a field names; of tuples not what is in them."""
    kinds = [_PLAIN.get(kind) or _CLASSES.get(kind) for kind in wanted.split("[")[0].split(" | ")]
    return any(kind is None or isinstance(value, kind) for kind in kinds) and wanted != "?"
