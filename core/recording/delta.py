"""What differs between two values of the model, as JSON with tables beside it, and back, strictly."""

from __future__ import annotations

import functools
import struct
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any

import numpy as np

from core.codec import WrongValue, decoder, encoder, has_default, json_name, unknown
from core.model import CONNTRACK_DTYPE, FASTFLOW_DTYPE, STATS_DTYPE

# By which columns a row is known again. It decides about the size only: any row may stand for any other.
_KEYS: tuple[tuple[np.dtype[Any], tuple[str, ...]], ...] = (
    (CONNTRACK_DTYPE, ("id",)),
    (STATS_DTYPE, ("ns", "ifindex")),
    (FASTFLOW_DTYPE, ("src", "dst", "sport", "dport", "l4_proto", "in_ifindex")),
)
_HEAD = struct.Struct("<I?")  # rows; whether the places of the rows before follow
_MIX = np.uint64(0x9E3779B97F4A7C15)


def pack(old: np.ndarray | None, new: np.ndarray) -> bytes:
    """The rows of `new`, each column as its differences (modulo its width) from the rows of `old` that they
    continue; docs/recording.md has the layout."""
    places = np.full(len(new), -1, "<i4") if old is None else _continued(old, new)
    known = bool((places >= 0).any())
    parts = [_HEAD.pack(len(new), known)]
    if known:
        parts.append(np.diff(places, prepend=places.dtype.type(-1)).astype("<i4").tobytes())
    for name in new.dtype.names or ():
        column = _numbers(new[name])
        if known and old is not None:
            column = column - _base(_numbers(old[name]), places)
        parts.append(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
    return b"".join(parts)


def unpack(old: np.ndarray | None, data: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """The read-only array that `pack` took, given the same `old`; raises WrongValue where it is none."""
    if len(data) < _HEAD.size or data[4] > 1:
        raise WrongValue("a table's columns are cut short")
    count, known = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + count * (dtype.itemsize + 4 * known):
        raise WrongValue("a table's columns are not of the size that they tell")
    offset, places = _HEAD.size, None
    if known:
        places = np.cumsum(np.frombuffer(data, "<i4", count, offset), dtype="i8") - 1
        offset += 4 * count
        if old is None or ((places < -1) | (places >= len(old))).any():
            raise WrongValue("a table continues rows that there are not")
    rows = np.zeros(count, dtype)
    for name in dtype.names or ():
        offset = _read_column(rows, name, data, offset, None if places is None else old, places)
    rows.flags.writeable = False
    return rows


def _read_column(
    rows: np.ndarray, name: str, data: bytes, offset: int, old: np.ndarray | None, places: np.ndarray | None
) -> int:
    """Fill in one column; returns where the next one begins."""
    target = _numbers(rows[name])
    read = np.frombuffer(data, target.dtype.newbyteorder("<"), target.size, offset).reshape(target.shape)
    if old is not None and places is not None:
        read = read + _base(_numbers(old[name]), places)
    if rows.dtype[name] == np.bool_ and (read > 1).any():
        raise WrongValue("a table holds a truth that is neither true nor false")
    target[...] = read
    return offset + target.nbytes


def _numbers(column: np.ndarray) -> np.ndarray:
    """The column as unsigned numbers, of which differences can be taken."""
    return column.view("u1") if column.dtype == np.bool_ else column


def _base(column: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The old values that the rows continue; 0 for rows that are new."""
    base = np.zeros((len(places), *column.shape[1:]), column.dtype)
    found = places >= 0
    base[found] = column[places[found]]
    return base


def _continued(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each new row the place of the old row of its key, -1 where there is none."""
    names = next((keys for dtype, keys in _KEYS if dtype == new.dtype), ())
    if not names or not len(old) or not len(new):
        return np.full(len(new), -1, "i4")
    olds, news = _hashes(old, names), _hashes(new, names)
    if len(olds) == len(news) and (olds == news).all():
        return np.arange(len(new), dtype="i4")
    order = np.argsort(olds, kind="stable")
    found = np.searchsorted(olds, news, sorter=order)
    candidates = order[np.minimum(found, len(olds) - 1)]
    return np.where(olds[candidates] == news, candidates, -1).astype("i4")


def _hashes(rows: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """One number a row, made from its key."""
    hashes = np.zeros(len(rows), "u8")
    for name in names:
        column = np.ascontiguousarray(rows[name])
        words = column.view("u8") if column.ndim > 1 else column.astype("u8")[:, None]
        for word in words.reshape(len(rows), -1).T:
            hashes = (hashes ^ word) * _MIX
            hashes ^= hashes >> np.uint64(29)
    return hashes


# Where there was nothing before.
NOTHING: Any = object()

# A difference is one of: ["=", value] the whole value; ["~", {field, key or place: difference}, [keys that
# went]] what changed inside; ["/", from, to, [items]] the items that took the places `from` to before `to` of
# a list; ["#", number] a table, in the part of that number.
Keep = Callable[[bytes], int]
Part = Callable[[int], bytes]


def difference(hint: Any, old: Any, new: Any, keep: Keep) -> list[Any] | None:
    """What turns `old` into `new`, values of the type `hint`; None where nothing does. `keep` takes in a
    table and numbers it."""
    if new is old:
        return None
    if isinstance(hint, np.dtype):
        return ["#", keep(pack(None if old is NOTHING else old, new))]
    hint = _given(hint)
    tabled: bool = has_tables(hint)
    if not tabled and (old is NOTHING or old == new):
        return None if old is not NOTHING else ["=", _encoded(hint, new)]
    if new is None:
        return ["=", None]
    before = NOTHING if old is None else old
    if is_dataclass(hint) and (tabled or before is not NOTHING):
        return _fields(typing.cast(type, hint), before, new, keep)
    if typing.get_origin(hint) is Mapping and (tabled or before is not NOTHING):
        return _mapping(hint, before, new, keep)
    if before is not NOTHING and _item(hint) is not None:
        return _listed(hint, before, new, keep)
    return ["=", _encoded(hint, new)]


def _encoded(hint: Any, value: Any) -> Any:
    encode = encoder(hint)
    return encode(value) if encode and value is not None else value


def _fields(owner: type, old: Any, new: Any, keep: Keep) -> list[Any] | None:
    parts = {said: (kind, _field(old, name), getattr(new, name)) for name, said, kind in _parts(owner)}
    return _inside(parts, [], keep)


def _field(owner: Any, name: str) -> Any:
    return NOTHING if owner is NOTHING else getattr(owner, name)


def _inside(
    parts: Mapping[str, tuple[Any, Any, Any]], gone: list[str], keep: Keep, whole: bool = False
) -> list[Any] | None:
    made = {}
    for name, (hint, old, new) in parts.items():
        found = difference(hint, old, new, keep)
        if found is not None:
            made[name] = found
    return ["~", made, gone] if made or gone or whole else None


def _mapping(hint: Any, old: Any, new: Mapping[Any, Any], keep: Keep) -> list[Any] | None:
    item, known = typing.get_args(hint)[1], {} if old is NOTHING else old
    parts = {str(key): (item, known.get(key, NOTHING), each) for key, each in new.items()}
    return _inside(parts, [str(key) for key in known if key not in new], keep, old is NOTHING)


def _listed(hint: Any, old: tuple[Any, ...], new: tuple[Any, ...], keep: Keep) -> list[Any] | None:
    """Of lists of one length the items that differ; else what lies between their common start and end."""
    if len(old) == len(new):
        item = _item(hint)
        return _inside(
            {str(place): (item, *pair) for place, pair in enumerate(zip(old, new, strict=True))}, [], keep
        )
    least = min(len(old), len(new))
    start = next((place for place in range(least) if old[place] != new[place]), least)
    least -= start
    end = next((place for place in range(least) if old[-1 - place] != new[-1 - place]), least)
    middle = new[start : len(new) - end]
    return ["/", start, len(old) - end, _encoded(hint, middle)]


def changed(hint: Any, old: Any, found: Any, part: Part) -> Any:
    """What `difference` made `found` of, given the same `old` (NOTHING where there was none). Raises
    WrongValue where anything is not as it must be."""
    match found:
        case ["=", value] if not isinstance(hint, np.dtype) and not has_tables(_given(hint)):
            return decoder(hint)(value)
        case ["=", None] if _given(hint) is not hint:
            return None
        case ["#", int(number)] if isinstance(hint, np.dtype):
            return unpack(None if old is NOTHING else old, part(number), hint)
        case ["~", dict(parts), list(gone)] if not isinstance(hint, np.dtype):
            return _put_inside(_given(hint), NOTHING if old is None else old, parts, gone, part)
        case ["/", int(start), int(end), list(items)] if _item(hint) and isinstance(old, tuple):
            if not 0 <= start <= end <= len(old):
                raise WrongValue("a list is changed where it has no items")
            return (*old[:start], *decoder(hint)(items), *old[end:])
    raise WrongValue("a change here is none that this program knows")


def _put_inside(hint: Any, old: Any, parts: dict[str, Any], gone: list[Any], part: Part) -> Any:
    if is_dataclass(hint):
        return _put_fields(typing.cast(type, hint), old, parts, part)
    if typing.get_origin(hint) is Mapping:
        return _put_items(hint, {} if old is NOTHING else old, parts, gone, part)
    item = _item(hint)
    if item is None or not isinstance(old, tuple):
        raise WrongValue("there is nothing here that could change")
    made = list(old)
    for key, each in parts.items():
        place = _whole(key)
        if place >= len(made):
            raise WrongValue("a list is changed where it has no items")
        made[place] = _inner(item, made[place], each, part, f"[{place}]")
    return tuple(made)


def _put_fields(owner: type, old: Any, parts: dict[str, Any], part: Part) -> Any:
    made, left = {}, dict(parts)
    for name, said, hint in _parts(owner):
        before = _field(old, name)
        if said in left:
            before = _inner(hint, before, left.pop(said), part, f".{said}")
        if before is not NOTHING:
            made[name] = before
        elif name in _needed(owner):
            raise WrongValue(f'"{said}" is missing')
    if left:
        raise unknown(next(iter(left)))
    return owner(**made)


def _put_items(hint: Any, old: Mapping[Any, Any], parts: dict[str, Any], gone: list[Any], part: Part) -> Any:
    key_hint, item = typing.get_args(hint)
    named: Callable[[Any], Any] = _whole if key_hint is int else str
    dropped = {named(key) for key in gone}
    made = {key: each for key, each in old.items() if key not in dropped}
    for key, each in parts.items():
        known = named(key)
        made[known] = _inner(item, made.get(known, NOTHING), each, part, f".{key[:40]}")
    return made


def _inner(hint: Any, old: Any, found: Any, part: Part, step: str) -> Any:
    try:
        return changed(hint, old, found, part)
    except WrongValue as error:
        raise error.inside(step) from None


def _whole(key: Any) -> int:
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20):
        raise WrongValue("a whole number should be the key here")
    return int(key)


@functools.cache
def _needed(owner: type) -> frozenset[str]:
    """The fields that a file must tell: others were not yet there when an older one was written."""
    return frozenset(each.name for each in fields(owner) if not has_default(each))


@functools.cache
def _parts(owner: type) -> tuple[tuple[str, str, Any], ...]:
    """The fields of a class of the model: name, name in JSON, type; of a table the columns."""
    hints = typing.get_type_hints(owner)
    made = []
    for each in fields(owner):
        kind = hints[each.name]
        if kind is np.ndarray:
            empty: Any = each.default_factory
            kind = empty().dtype
        made.append((each.name, json_name(each.name), kind))
    return tuple(made)


@functools.cache
def has_tables(hint: Any) -> bool:
    """Whether values of that type hold tables anywhere."""
    if isinstance(hint, np.dtype):
        return True
    if is_dataclass(hint):
        return any(has_tables(kind) for _, _, kind in _parts(typing.cast(type, hint)))
    return any(has_tables(each) for each in typing.get_args(hint) if each is not Ellipsis)


def table_bytes(hint: Any, value: Any) -> int:
    """How many bytes the tables in a value of that type take."""
    if value is None or not has_tables(hint):
        return 0
    if isinstance(hint, np.dtype):
        return int(value.nbytes)
    hint = _given(hint)
    if is_dataclass(hint):
        return sum(
            table_bytes(kind, getattr(value, name)) for name, _, kind in _parts(typing.cast(type, hint))
        )
    return sum(table_bytes(typing.get_args(hint)[1], each) for each in value.values())


@functools.cache
def _given(hint: Any) -> Any:
    """The type without "or None"."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        some = [each for each in typing.get_args(hint) if each is not NoneType]
        return some[0] if len(some) == 1 else hint
    return hint


@functools.cache
def _item(hint: Any) -> Any:
    """What a list of objects holds; None for other types."""
    arguments = typing.get_args(hint)
    listed = typing.get_origin(hint) is tuple and arguments[-1] is Ellipsis
    return arguments[0] if listed and is_dataclass(arguments[0]) else None
