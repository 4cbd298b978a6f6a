"""Snapshots as JSON, and dump files: the same JSON under gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from ipaddress import ip_address
from typing import Any, NoReturn

from core.codec import WrongValue, decoder, encoder
from core.model import FAST_PATHS, FastFlows, Snapshot

SCHEMA = 1
# A conntrack entry takes about 220 bytes and 18 numbers: what a file can make this process hold is bounded.
MAX_BYTES = 1 << 29
MAX_VALUES = 1 << 25
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_MAGIC, _TAR_BLOCK = b"ustar", 512
# What every version of the program wrote of a snapshot: without it there would be an empty host to see.
ALWAYS = ("taken_at", "host", "namespaces", "nets", "firewalls", "engines")
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
    encode = encoder(Snapshot)
    assert encode is not None
    return json.dumps({"schema": SCHEMA, "snapshot": encode(snapshot)}, separators=(",", ":")).encode("ascii")


def from_json(data: bytes) -> Snapshot:
    """The snapshot that `to_json` wrote; CorruptFile where anything in it is not as it must be."""
    if len(data) > MAX_BYTES or data.count(b",") + data.count(b":") > MAX_VALUES:
        raise CorruptFile("the dump is too large to be read", try_=_NOT_OURS)
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


def inflated(data: bytes) -> bytes:
    """The content of a dump file or bundle without its compression, as `unpack` and `unpack_fast` take it as
    well; CorruptFile where that is broken."""
    return _inflated(data) if data.startswith(_GZIP_MAGIC) else data


def unpack(data: bytes) -> Snapshot:
    """The snapshot in the content of a dump file (gzip or plain JSON) or of a bundle; CorruptFile where it
    cannot be read."""
    text = inflated(data)
    return from_json(_in_archive(text, SNAPSHOT_FILE) if text[257:262] == _TAR_MAGIC else text)


def unpack_fast(data: bytes) -> FastFlows | None:
    """What the fast path had counted, in the content of a bundle; None where it does not tell, or where that
    cannot be read: a bundle is good without."""
    try:
        text = inflated(data)
        if text[257:262] != _TAR_MAGIC:
            return None
        told = _in_archive(text, FAST_FILE)
        if told.count(b",") > MAX_VALUES:
            return None
        found: FastFlows = decoder(FastFlows)(_parsed(told))
    except (CorruptFile, WrongValue):
        return None
    return None if (found.entries["path"] >= len(FAST_PATHS)).any() else found


def _in_archive(archive: bytes, wanted: str) -> bytes:
    """The file of that name in a tar archive (tar(5), "ustar")."""
    at = 0
    while at + _TAR_BLOCK <= len(archive):
        head = archive[at : at + _TAR_BLOCK]
        name, digits = head[:100].rstrip(b"\0"), head[124:136].strip(b" \0")
        if not name and not digits:
            break
        if not digits or digits.strip(b"01234567"):
            raise CorruptFile("the archive is damaged", f"byte {at}")
        size, at = int(digits, 8), at + _TAR_BLOCK
        if head[156:157] in (b"0", b"\0") and name.split(b"/")[-1] == wanted.encode():
            if at + size > len(archive):
                raise CorruptFile("the archive ends too early")
            return archive[at : at + size]
        at += -(-size // _TAR_BLOCK) * _TAR_BLOCK
    raise CorruptFile(f"this archive holds no {wanted}", try_=_NOT_OURS)


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = stream.decompress(data, MAX_BYTES + 1)
    except zlib.error:
        raise CorruptFile("the dump is damaged: it does not unpack") from None
    if len(text) > MAX_BYTES:
        raise CorruptFile("the dump is too large to be read", try_=_NOT_OURS)
    if not stream.eof:
        raise CorruptFile("the dump ends too early")
    if stream.unused_data:
        raise CorruptFile("something follows the end of the dump")
    return text


def _parsed(data: bytes) -> Any:
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
    """Links' addresses come from the kernel, and the whole program takes them for addresses."""
    for link in snapshot.links():
        for address in link.addresses:
            try:
                ip_address(address.address)
            except ValueError:
                words = f"{address.address[:40]!r} is no address"
                raise CorruptFile(words, f"snapshot.nets.{link.ns}.links.{link.ifindex}.addresses") from None
