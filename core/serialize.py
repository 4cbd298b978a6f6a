"""Snapshots as JSON, and dump files: the same JSON under gzip."""

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
# What every version of the program wrote of a snapshot: without it there would be an empty host to see.
ALWAYS = ("taken_at", "host", "namespaces", "nets", "firewalls", "engines")
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_DEEP = 6  # levels of objects that are written piece by piece: down to a namespace's links
_PIECE = 1000  # items of a list
_PIECE_OF_TEXT = 1 << 18  # characters
SNAPSHOT_FILE, FAST_FILE = "snapshot.json", "fastflows.json"  # in a bundle
_NOT_OURS = "Give a file that `vnet-tui dump` or `vnet-tui bundle` wrote."
_WRITE_AGAIN = "Write or copy the dump again: it was cut short, changed, or written by another vnet-tui."


class CorruptFile(Exception):
    """A dump that cannot be read: `what` is wrong, `where` in it ("" for the whole), and what to `try_`."""

    def __init__(self, what: str, where: str = "", try_: str = _WRITE_AGAIN) -> None:
        super().__init__(f"{what}{f' (at {where})' if where else ''}. {try_}")
        self.what, self.where, self.try_ = what, where, try_


def to_json(snapshot: Snapshot) -> bytes:
    """The whole snapshot as ASCII JSON, {"schema": 1, "snapshot": {...}}, every field by its model's name.
    A field that the model gained since a file was written takes its default when that is read.

    Keys that are numbers in the model become text; a structured array becomes an object of columns.
    """
    return "".join(json_pieces(snapshot)).encode("ascii")


def json_pieces(snapshot: Snapshot) -> Iterator[str]:
    """The same text in pieces: json.dumps of a large whole would keep every other thread waiting."""
    encode = encoder(Snapshot)
    assert encode is not None
    yield from _pieces({"schema": SCHEMA, "snapshot": encode(snapshot)}, _DEEP)


def _pieces(value: Any, deep: int) -> Iterator[str]:
    if deep and isinstance(value, dict):
        between = "{"
        for key, each in value.items():
            yield f"{between}{_ENCODE(key)}:"
            yield from _pieces(each, deep - 1)
            between = ","
        yield "}" if value else "{}"
    elif isinstance(value, list) and len(value) > _PIECE:
        for start in range(0, len(value), _PIECE):
            yield f"{',' if start else '['}{_ENCODE(value[start : start + _PIECE])[1:-1]}"
        yield "]"
    elif isinstance(value, str) and len(value) > _PIECE_OF_TEXT:
        yield '"'
        for start in range(0, len(value), _PIECE_OF_TEXT):
            yield _ENCODE(value[start : start + _PIECE_OF_TEXT])[1:-1]
        yield '"'
    else:
        yield _ENCODE(value)


def from_json(data: bytes | bytearray) -> Snapshot:
    """The snapshot that `to_json` wrote; CorruptFile where anything in it is not as it must be."""
    with _in_words():
        SizeCounter().add(data)
    whole = _parsed(data)
    if type(whole) is not dict or "schema" not in whole or "snapshot" not in whole:
        raise CorruptFile("this is not a dump of vnet-tui", try_=_NOT_OURS)
    if type(whole["schema"]) is not int or whole["schema"] != SCHEMA:
        raise CorruptFile(
            f"the dump has schema {str(whole['schema'])[:20]!r}, this program reads schema {SCHEMA}",
            "schema", "Open it with the version of vnet-tui that wrote it.",
        )  # fmt: skip
    try:
        check_always(whole["snapshot"])
        snapshot: Snapshot = decoder(Snapshot)(whole["snapshot"])
    except WrongValue as error:
        raise CorruptFile(str(error), "snapshot" + "".join(error.path)) from None
    check(snapshot)
    return snapshot


def check_always(told: Any) -> None:
    """Refuse an object from a file that lacks what every snapshot has; raises WrongValue."""
    missing = [name for name in ALWAYS if isinstance(told, dict) and name not in told]
    if missing:
        raise WrongValue(f'"{missing[0]}" is missing')


def check(snapshot: Snapshot) -> None:
    """Refuse what has the right form, but which no host can be: raises CorruptFile."""
    _check_keys(snapshot)
    _check_addresses(snapshot)


def pack(snapshot: Snapshot) -> bytes:
    """The content of a dump file."""
    return gzip.compress(to_json(snapshot), compresslevel=3)


def unpack(data: bytes) -> Snapshot:
    """The snapshot in the content of a dump file (gzip or plain JSON) or of a bundle; CorruptFile where it
    cannot be read."""
    return unpack_both(data)[0]


def unpack_both(data: bytes) -> tuple[Snapshot, FastFlows | None]:
    """The same, and what the fast path had counted: None where that is missing or cannot be read, for a
    bundle is good without."""
    files = _files_in(data)
    if SNAPSHOT_FILE not in files:
        raise CorruptFile(f"this archive holds no {SNAPSHOT_FILE}", try_=_NOT_OURS)
    return from_json(files.pop(SNAPSHOT_FILE)), _fast_in(files)


def unpack_fast(data: bytes) -> FastFlows | None:
    """What the fast path had counted, in the content of a bundle."""
    try:
        return _fast_in(_files_in(data))
    except CorruptFile:
        return None


def _fast_in(files: Mapping[str, bytes | bytearray]) -> FastFlows | None:
    if FAST_FILE not in files:
        return None
    try:
        found: FastFlows = decoder(FastFlows)(_parsed(files[FAST_FILE]))
    except (CorruptFile, WrongValue):
        return None
    return None if (found.entries["path"] >= len(FAST_PATHS)).any() else found


def _files_in(data: bytes) -> dict[str, bytes | bytearray]:
    """The JSON files that are read of a dump file or bundle, by name."""
    files: dict[str, bytes | bytearray] = {}
    with _in_words():
        source = UnpackedFile(data)
        start = source.start(_TAR_AT + len(_TAR_MAGIC))
        if start[_TAR_AT:] != _TAR_MAGIC:
            if start.lstrip()[:1] not in (b"{", b""):
                raise CorruptFile("this is not a dump of vnet-tui", try_=_NOT_OURS)
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
def _in_words() -> Iterator[None]:
    """What is unfit about a file becomes CorruptFile."""
    try:
        yield
    except TooLarge as error:
        raise CorruptFile(f"the dump is too large to be read: {error.what}", try_=_NOT_OURS) from None
    except UnpackError as error:
        raise CorruptFile(error.what, error.where) from None


def _parsed(data: bytes | bytearray) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if not data.lstrip().startswith(b"{"):
            raise CorruptFile("this is not a dump of vnet-tui", try_=_NOT_OURS) from None
        early = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        raise CorruptFile(
            "the dump ends too early" if early else "the dump is not JSON", f"character {error.pos}"
        ) from None
    except UnicodeDecodeError:
        raise CorruptFile("this is not a dump of vnet-tui", try_=_NOT_OURS) from None
    except (ValueError, RecursionError):
        raise CorruptFile("the dump holds values that no dump holds", try_=_NOT_OURS) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _check_keys(snapshot: Snapshot) -> None:
    """What is found under a key must be what the key names: the whole program relies on it."""
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
                f"what is called {str(key)[:40]!r} says of itself that it is {str(value)[:40]!r}",
                f"snapshot.{where}",
            )


def _check_addresses(snapshot: Snapshot) -> None:
    """What the kernel and the engines tell are addresses, and the whole program takes them for such; engines'
    answers were looked at when they were read."""
    for is_one, text, where in chain(_of_nets(snapshot), _of_engines(snapshot)):
        if not is_one(text):
            raise CorruptFile(f"{text[:40]!r} is no address", f"snapshot.{where}")


type _Addresses = Iterator[tuple[Callable[[str], bool], str, str]]


def _of_nets(snapshot: Snapshot) -> _Addresses:
    for ns, net in snapshot.nets.items():
        for index, link in net.links.items():
            for address in link.addresses:
                yield is_interface, str(address), f"nets.{ns}.links.{index}.addresses"
        for route in net.routes:
            if route.dst != "default":
                yield is_prefix, route.dst, f"nets.{ns}.routes"


def _of_engines(snapshot: Snapshot) -> _Addresses:
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
