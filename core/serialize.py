"""Convert snapshots to JSON and back, and read and write dump files (gzip)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NoReturn

from core.codec import WrongValue, decoder, encoder
from core.files import SizeCounter, TooLarge, UnpackedFile, UnpackError, archived, json_text
from core.model import FAST_PATHS, FastFlows, Snapshot
from core.text import is_address, is_interface, is_prefix

SCHEMA = 1
_TAR_MAGIC, _TAR_AT = b"ustar", 257
# Fields that every version wrote: their defaults would show an empty host.
ALWAYS = ("taken_at", "host", "namespaces", "nets", "firewalls", "engines")
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_MAX_DEPTH = 6  # levels of objects that are encoded in pieces: down to a namespace's links
_LIST_PIECE = 1000  # items
_TEXT_PIECE = 1 << 18  # characters
SNAPSHOT_FILE, FAST_FILE = "snapshot.json", "fastflows.json"  # in a bundle
_TRY_OTHER_FILE = "a file that `vnet-tui dump` or `vnet-tui bundle` wrote"
_WRITE_AGAIN = "write or copy it again, as it was truncated, changed, or written by another version"


class CorruptFile(Exception):
    """A dump can't be read: `what` is wrong, `where` in it, and what to `try_`.

    The text is the reason that follows "can't read FILE: ".
    """

    def __init__(self, what: str, where: str = "", try_: str = _WRITE_AGAIN) -> None:
        super().__init__(f"{what}{f' (at {where})' if where else ''}. Try: {try_}")
        self.what, self.where, self.try_ = what, where, try_


def to_json(snapshot: Snapshot) -> bytes:
    """Encode a snapshot as ASCII JSON, {"schema": 1, "snapshot": {...}}.

    Keys are the model's field names; numeric keys become strings, and a structured array becomes an object of
    columns. A field that an older file lacks gets its default when read.
    """
    return "".join(json_pieces(snapshot)).encode("ascii")


def json_pieces(snapshot: Snapshot) -> Iterator[str]:
    """Yield the same JSON in pieces: one json.dumps would block all other threads."""
    encode = encoder(Snapshot)
    assert encode is not None
    yield from _pieces({"schema": SCHEMA, "snapshot": encode(snapshot)}, _MAX_DEPTH)


def _pieces(value: Any, depth: int) -> Iterator[str]:
    if depth and isinstance(value, dict):
        separator = "{"
        for key, each in value.items():
            yield f"{separator}{_ENCODE(key)}:"
            yield from _pieces(each, depth - 1)
            separator = ","
        yield "}" if value else "{}"
    elif isinstance(value, list) and len(value) > _LIST_PIECE:
        for start in range(0, len(value), _LIST_PIECE):
            yield f"{',' if start else '['}{_ENCODE(value[start : start + _LIST_PIECE])[1:-1]}"
        yield "]"
    elif isinstance(value, str) and len(value) > _TEXT_PIECE:
        yield '"'
        for start in range(0, len(value), _TEXT_PIECE):
            yield _ENCODE(value[start : start + _TEXT_PIECE])[1:-1]
        yield '"'
    else:
        yield _ENCODE(value)


def from_json(data: bytes | bytearray) -> Snapshot:
    """Decode the output of `to_json`. Raises CorruptFile."""
    with _as_corrupt():
        SizeCounter().add(data)
    document = _parsed(data)
    if type(document) is not dict or "schema" not in document or "snapshot" not in document:
        raise CorruptFile("this isn't a dump of vnet-tui", try_=_TRY_OTHER_FILE)
    if type(document["schema"]) is not int or document["schema"] != SCHEMA:
        raise CorruptFile(
            f"the dump has schema {str(document['schema'])[:20]!r}, this version reads schema {SCHEMA}",
            "schema", "open it with the version of vnet-tui that wrote it",
        )  # fmt: skip
    try:
        check_always(document["snapshot"])
        snapshot: Snapshot = decoder(Snapshot)(document["snapshot"])
    except WrongValue as error:
        raise CorruptFile(str(error), "snapshot" + "".join(error.path)) from None
    check(snapshot)
    return snapshot


def check_always(value: Any) -> None:
    """Raise WrongValue if an object from a file lacks a field of ALWAYS."""
    missing = [name for name in ALWAYS if isinstance(value, dict) and name not in value]
    if missing:
        raise WrongValue(f'"{missing[0]}" is missing')


def check(snapshot: Snapshot) -> None:
    """Check keys and addresses of a decoded snapshot. Raises CorruptFile."""
    _check_keys(snapshot)
    _check_addresses(snapshot)


def pack(snapshot: Snapshot) -> bytes:
    """Encode a snapshot as a dump file."""
    return gzip.compress(to_json(snapshot), compresslevel=3)


def unpack(data: bytes) -> Snapshot:
    """Decode the snapshot of a dump file or a bundle. Raises CorruptFile."""
    return unpack_both(data)[0]


def unpack_both(data: bytes) -> tuple[Snapshot, FastFlows | None]:
    """Decode snapshot and fast-path flows; the latter None if missing or unreadable."""
    files = _files_in(data)
    if SNAPSHOT_FILE not in files:
        raise CorruptFile(f"this archive doesn't contain {SNAPSHOT_FILE}", try_=_TRY_OTHER_FILE)
    return from_json(files.pop(SNAPSHOT_FILE)), _fast_in(files)


def _fast_in(files: Mapping[str, bytes | bytearray]) -> FastFlows | None:
    if FAST_FILE not in files:
        return None
    try:
        found: FastFlows = decoder(FastFlows)(_parsed(files[FAST_FILE]))
    except (CorruptFile, WrongValue):
        return None
    return None if (found.entries["path"] >= len(FAST_PATHS)).any() else found


def _files_in(data: bytes) -> dict[str, bytes | bytearray]:
    """Return the JSON files of a dump file or bundle by name."""
    files: dict[str, bytes | bytearray] = {}
    with _as_corrupt():
        source = UnpackedFile(data)
        start = source.peek(_TAR_AT + len(_TAR_MAGIC))
        if start[_TAR_AT:] != _TAR_MAGIC:
            if start.lstrip()[:1] not in (b"{", b""):
                raise CorruptFile("this isn't a dump of vnet-tui", try_=_TRY_OTHER_FILE)
            files[SNAPSHOT_FILE] = json_text(source)
        else:
            for name, size in archived(source):
                if name.decode("ascii", "replace") in (SNAPSHOT_FILE, FAST_FILE):
                    text = files[name.decode()] = json_text(source, size)
                    if len(text) < size:
                        raise CorruptFile("the archive ends too early")
        source.end()
    return files


@contextmanager
def _as_corrupt() -> Iterator[None]:
    """Raise CorruptFile for UnpackError."""
    try:
        yield
    except TooLarge as error:
        raise CorruptFile(f"the dump is too large: {error.what}", try_=_TRY_OTHER_FILE) from None
    except UnpackError as error:
        raise CorruptFile(error.what, error.where) from None


def _parsed(data: bytes | bytearray) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if not data.lstrip().startswith(b"{"):
            raise CorruptFile("this isn't a dump of vnet-tui", try_=_TRY_OTHER_FILE) from None
        early = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        raise CorruptFile(
            "the dump ends too early" if early else "the dump isn't valid JSON", f"character {error.pos}"
        ) from None
    except UnicodeDecodeError:
        raise CorruptFile("this isn't a dump of vnet-tui", try_=_TRY_OTHER_FILE) from None
    except (ValueError, RecursionError):
        raise CorruptFile("the dump contains invalid values", try_=_TRY_OTHER_FILE) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _check_keys(snapshot: Snapshot) -> None:
    """Check that each mapping's key is the key of its value: the program relies on it."""
    pairs = [
        *((key, each.inode, "namespaces") for key, each in snapshot.namespaces.items()),
        *((key, each.ns, "nets") for key, each in snapshot.nets.items()),
        *((key, each.ns, "firewalls") for key, each in snapshot.firewalls.items()),
        *((key, each.ns, "conntracks") for key, each in snapshot.conntracks.items()),
        *((key, each.name, "engines") for key, each in snapshot.engines.items()),
    ]
    for ns, net in snapshot.nets.items():
        pairs += [(key, link.ifindex, f"nets.{ns}.links") for key, link in net.links.items()]
        pairs += [(ns, link.ns, f"nets.{ns}.links.{key}") for key, link in net.links.items()]
    for key, value, where in pairs:
        if key != value:
            raise CorruptFile(
                f"the value of key {str(key)[:40]!r} has the key {str(value)[:40]!r}", f"snapshot.{where}"
            )


def _check_addresses(snapshot: Snapshot) -> None:
    """Check the addresses of links, routes and engines: the program relies on them."""
    for is_valid, text, where in chain(_net_addresses(snapshot), _engine_addresses(snapshot)):
        if not is_valid(text):
            raise CorruptFile(f"{text[:40]!r} isn't an address", f"snapshot.{where}")


type _Addresses = Iterator[tuple[Callable[[str], bool], str, str]]


def _net_addresses(snapshot: Snapshot) -> _Addresses:
    for ns, net in snapshot.nets.items():
        for index, link in net.links.items():
            for address in link.addresses:
                yield is_interface, str(address), f"nets.{ns}.links.{index}.addresses"
        for route in net.routes:
            if route.dst != "default":
                yield is_prefix, route.dst, f"nets.{ns}.routes"
            for text in filter(None, (route.source, *(hop.gateway for hop in route.nexthops))):
                yield is_address, text, f"nets.{ns}.routes"
        for rule in net.rules:
            for text in filter(None, (rule.src, rule.dst)):
                yield is_prefix, text, f"nets.{ns}.rules"


def _engine_addresses(snapshot: Snapshot) -> _Addresses:
    for name, engine in snapshot.engines.items():
        for network in engine.networks:
            for subnet in network.subnets:
                yield is_prefix, subnet, f"engines.{name}.networks"
            for gateway in network.gateways:
                yield is_address, gateway, f"engines.{name}.networks"
        for container in engine.containers:
            for end in container.endpoints:
                for text in filter(None, (end.ipv4, end.ipv6)):
                    yield is_interface, text, f"engines.{name}.containers"
