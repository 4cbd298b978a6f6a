"""Values that operations consist of: targets, and their JSON form in the journal.

A target is a network namespace: the host's, a named one, or that of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from core.text import quoted

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


@recorded("Place")
@dataclass(frozen=True, slots=True)
class NetnsTarget:
    """Identify a network namespace.

    It is the host's (nothing set), the namespace `name` under /run/netns, or the one that process `pid` is
    in. `inode` is that of the namespace, if known: when the pid or the name was reused for another namespace,
    the target counts as gone. `others` are more processes in it, for the case that `pid` has ended.
    """

    name: str = ""
    pid: int | None = None
    inode: int | None = None
    others: tuple[int, ...] = field(default=(), compare=False)

    def link(self, name: str) -> str:
        """Return the name of a link with its namespace, as Operation.affects() uses it."""
        return f"{name} in {self}"

    @property
    def path(self) -> str:
        """Return the path of the namespace in nsfs, "" for the host."""
        if self.name:
            return f"/run/netns/{self.name}"
        return f"/proc/{self.pid}/ns/net" if self.pid is not None else ""

    def ip(self, arguments: str) -> str:
        """Return an ip(8) command for that namespace."""
        if self.name:
            return f"ip -n {quoted(self.name)} {arguments}"
        return self.inside(f"ip {arguments}")

    def bridge(self, arguments: str) -> str:
        """Return a bridge(8) command for that namespace."""
        if self.name:
            return f"bridge -n {quoted(self.name)} {arguments}"
        return self.inside(f"bridge {arguments}")

    def inside(self, command: str) -> str:
        """Return any command, run in that namespace."""
        if self.name:
            return f"ip netns exec {quoted(self.name)} {command}"
        return f"nsenter -t {self.pid} -n {command}" if self.pid is not None else command

    @property
    def netns_argument(self) -> str:
        """Return the value of ip(8)'s `netns` argument.

        The host is the namespace of process 1.
        """
        return quoted(self.name) if self.name else str(self.pid if self.pid is not None else 1)

    def __str__(self) -> str:
        return self.name or (f"process {self.pid}" if self.pid is not None else "the host")


HOST = NetnsTarget()
