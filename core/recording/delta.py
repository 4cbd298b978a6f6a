"""Encode differences of model values as JSON and tables, and apply them."""

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

# The columns by which rows are matched. They only affect the size: any row may be the base of any other.
_KEYS: tuple[tuple[np.dtype[Any], tuple[str, ...]], ...] = (
    (CONNTRACK_DTYPE, ("id",)),
    (STATS_DTYPE, ("ns", "ifindex")),
    (FASTFLOW_DTYPE, ("src", "dst", "sport", "dport", "l4_proto", "in_ifindex")),
)
_HEAD = struct.Struct("<I?")  # number of rows; whether the indexes of their old rows follow
_MIX = np.uint64(0x9E3779B97F4A7C15)


def pack(old: np.ndarray | None, new: np.ndarray) -> bytes:
    """Encode rows as columns of differences (modulo width) from the matching old rows.

    docs/recording.md has the layout."""
    matches = np.full(len(new), -1, "<i4") if old is None else _matching_rows(old, new)
    has_matches = bool((matches >= 0).any())
    parts = [_HEAD.pack(len(new), has_matches)]
    if has_matches:
        parts.append(np.diff(matches, prepend=matches.dtype.type(-1)).astype("<i4").tobytes())
    for name in new.dtype.names or ():
        column = _as_unsigned(new[name])
        if has_matches and old is not None:
            column = column - _base_values(_as_unsigned(old[name]), matches)
        parts.append(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
    return b"".join(parts)


def unpack(old: np.ndarray | None, data: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """Decode the output of `pack`, given the same `old`, to a read-only array.

    Raises WrongValue."""
    if len(data) < _HEAD.size or data[4] > 1:
        raise WrongValue("a table is truncated")
    count, has_matches = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + count * (dtype.itemsize + 4 * has_matches):
        raise WrongValue("a table has the wrong size")
    offset, matches = _HEAD.size, None
    if has_matches:
        matches = np.cumsum(np.frombuffer(data, "<i4", count, offset), dtype="i8") - 1
        offset += 4 * count
        if old is None or ((matches < -1) | (matches >= len(old))).any():
            raise WrongValue("a table refers to old rows that don't exist")
    rows = np.zeros(count, dtype)
    for name in dtype.names or ():
        offset = _read_column(rows, name, data, offset, None if matches is None else old, matches)
    rows.flags.writeable = False
    return rows


def _read_column(
    rows: np.ndarray, name: str, data: bytes, offset: int, old: np.ndarray | None, matches: np.ndarray | None
) -> int:
    """Fill in one column; return the offset of the next one."""
    target = _as_unsigned(rows[name])
    read = np.frombuffer(data, target.dtype.newbyteorder("<"), target.size, offset).reshape(target.shape)
    if old is not None and matches is not None:
        read = read + _base_values(_as_unsigned(old[name]), matches)
    if rows.dtype[name] == np.bool_ and (read > 1).any():
        raise WrongValue("a table has a boolean that is neither 0 nor 1")
    target[...] = read
    return offset + target.nbytes


def _as_unsigned(column: np.ndarray) -> np.ndarray:
    """View a column as numbers that can be subtracted."""
    return column.view("u1") if column.dtype == np.bool_ else column


def _base_values(column: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Return the values of the matching old rows, 0 for new rows."""
    base = np.zeros((len(matches), *column.shape[1:]), column.dtype)
    found = matches >= 0
    base[found] = column[matches[found]]
    return base


def _matching_rows(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the index of the old row with each new row's key, -1 if there is none."""
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
    """Hash the key of each row."""
    hashes = np.zeros(len(rows), "u8")
    for name in names:
        column = np.ascontiguousarray(rows[name])
        words = column.view("u8") if column.ndim > 1 else column.astype("u8")[:, None]
        for word in words.reshape(len(rows), -1).T:
            hashes = (hashes ^ word) * _MIX
            hashes ^= hashes >> np.uint64(29)
    return hashes


# The old value if there is none.
NOTHING: Any = object()

# A delta is one of: ["=", value] the whole value; ["~", {field, key or index: delta}, [removed keys]] changes
# inside; ["/", from, to, [items]] items that replace those from `from` to before `to` of a list;
# ["#", number] a table, in the part with that number.
Keep = Callable[[bytes], int]
Part = Callable[[int], bytes]


def encode_delta(hint: Any, old: Any, new: Any, keep: Keep) -> list[Any] | None:
    """Encode what changes `old` to `new`, values of type `hint`; None if nothing does.

    `keep` stores a table and returns its number."""
    if new is old:
        return None
    if isinstance(hint, np.dtype):
        return ["#", keep(pack(None if old is NOTHING else old, new))]
    hint = _without_none(hint)
    has_table: bool = has_tables(hint)
    if not has_table and (old is NOTHING or old == new):
        return None if old is not NOTHING else ["=", _encode_value(hint, new)]
    if new is None:
        return ["=", None]
    before = NOTHING if old is None else old
    if is_dataclass(hint) and (has_table or before is not NOTHING):
        return _encode_fields(typing.cast(type, hint), before, new, keep)
    if typing.get_origin(hint) is Mapping and (has_table or before is not NOTHING):
        return _encode_mapping(hint, before, new, keep)
    if before is not NOTHING and _item_class(hint) is not None:
        return _encode_list(hint, before, new, keep)
    return ["=", _encode_value(hint, new)]


def _encode_value(hint: Any, value: Any) -> Any:
    encode = encoder(hint)
    return encode(value) if encode and value is not None else value


def _encode_fields(owner: type, old: Any, new: Any, keep: Keep) -> list[Any] | None:
    parts = {key: (kind, _field(old, name), getattr(new, name)) for name, key, kind in _model_fields(owner)}
    return _encode_parts(parts, [], keep)


def _field(owner: Any, name: str) -> Any:
    return NOTHING if owner is NOTHING else getattr(owner, name)


def _encode_parts(
    parts: Mapping[str, tuple[Any, Any, Any]], removed: list[str], keep: Keep, always: bool = False
) -> list[Any] | None:
    deltas = {}
    for name, (hint, old, new) in parts.items():
        delta = encode_delta(hint, old, new, keep)
        if delta is not None:
            deltas[name] = delta
    return ["~", deltas, removed] if deltas or removed or always else None


def _encode_mapping(hint: Any, old: Any, new: Mapping[Any, Any], keep: Keep) -> list[Any] | None:
    item, before = typing.get_args(hint)[1], {} if old is NOTHING else old
    parts = {str(key): (item, before.get(key, NOTHING), each) for key, each in new.items()}
    return _encode_parts(parts, [str(key) for key in before if key not in new], keep, old is NOTHING)


def _encode_list(hint: Any, old: tuple[Any, ...], new: tuple[Any, ...], keep: Keep) -> list[Any] | None:
    """Encode items that differ in lists of the same length, else the differing middle."""
    if len(old) == len(new):
        item = _item_class(hint)
        return _encode_parts(
            {str(index): (item, *pair) for index, pair in enumerate(zip(old, new, strict=True))}, [], keep
        )
    length = min(len(old), len(new))
    start = next((index for index in range(length) if old[index] != new[index]), length)
    length -= start
    end = next((index for index in range(length) if old[-1 - index] != new[-1 - index]), length)
    middle = new[start : len(new) - end]
    return ["/", start, len(old) - end, _encode_value(hint, middle)]


def apply_delta(hint: Any, old: Any, delta: Any, part: Part) -> Any:
    """Apply the output of `encode_delta` to the same `old`. Raises WrongValue."""
    match delta:
        case ["=", value] if not isinstance(hint, np.dtype) and not has_tables(_without_none(hint)):
            return decoder(hint)(value)
        case ["=", None] if _without_none(hint) is not hint:
            return None
        case ["#", int(number)] if isinstance(hint, np.dtype):
            return unpack(None if old is NOTHING else old, part(number), hint)
        case ["~", dict(parts), list(removed)] if not isinstance(hint, np.dtype):
            return _apply_parts(_without_none(hint), NOTHING if old is None else old, parts, removed, part)
        case ["/", int(start), int(end), list(items)] if _item_class(hint) and isinstance(old, tuple):
            if not 0 <= start <= end <= len(old):
                raise WrongValue("a change is beyond the end of a list")
            return (*old[:start], *decoder(hint)(items), *old[end:])
    raise WrongValue("unknown kind of change")


def _apply_parts(hint: Any, old: Any, parts: dict[str, Any], removed: list[Any], part: Part) -> Any:
    if is_dataclass(hint):
        return _apply_fields(typing.cast(type, hint), old, parts, part)
    if typing.get_origin(hint) is Mapping:
        return _apply_items(hint, {} if old is NOTHING else old, parts, removed, part)
    item = _item_class(hint)
    if item is None or not isinstance(old, tuple):
        raise WrongValue("a change is inside a value that has no parts")
    items = list(old)
    for key, each in parts.items():
        index = _integer(key)
        if index >= len(items):
            raise WrongValue("a change is beyond the end of a list")
        items[index] = _apply_inner(item, items[index], each, part, f"[{index}]")
    return tuple(items)


def _apply_fields(owner: type, old: Any, parts: dict[str, Any], part: Part) -> Any:
    values, left = {}, dict(parts)
    for name, key, hint in _model_fields(owner):
        value = _field(old, name)
        if key in left:
            value = _apply_inner(hint, value, left.pop(key), part, f".{key}")
        if value is not NOTHING:
            values[name] = value
        elif name in _required_fields(owner):
            raise WrongValue(f'"{key}" is missing')
    if left:
        raise unknown(next(iter(left)))
    return owner(**values)


def _apply_items(
    hint: Any, old: Mapping[Any, Any], parts: dict[str, Any], removed: list[Any], part: Part
) -> Any:
    key_hint, item = typing.get_args(hint)
    decode_key: Callable[[Any], Any] = _integer if key_hint is int else str
    dropped = {decode_key(key) for key in removed}
    items = {key: each for key, each in old.items() if key not in dropped}
    for text, each in parts.items():
        key = decode_key(text)
        items[key] = _apply_inner(item, items.get(key, NOTHING), each, part, f".{text[:40]}")
    return items


def _apply_inner(hint: Any, old: Any, delta: Any, part: Part, step: str) -> Any:
    try:
        return apply_delta(hint, old, delta, part)
    except WrongValue as error:
        raise error.inside(step) from None


def _integer(key: Any) -> int:
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20):
        raise WrongValue("expected an integer as the key")
    return int(key)


@functools.cache
def _required_fields(owner: type) -> frozenset[str]:
    """Return the fields without a default: older files may lack the others."""
    return frozenset(each.name for each in fields(owner) if not has_default(each))


@functools.cache
def _model_fields(owner: type) -> tuple[tuple[str, str, Any], ...]:
    """Return name, JSON key and type of a class's fields; for a table its dtype."""
    hints = typing.get_type_hints(owner)
    found = []
    for each in fields(owner):
        kind = hints[each.name]
        if kind is np.ndarray:
            empty: Any = each.default_factory
            kind = empty().dtype
        found.append((each.name, json_name(each.name), kind))
    return tuple(found)


@functools.cache
def has_tables(hint: Any) -> bool:
    """Return whether values of that type contain tables."""
    if isinstance(hint, np.dtype):
        return True
    if is_dataclass(hint):
        return any(has_tables(kind) for _, _, kind in _model_fields(typing.cast(type, hint)))
    return any(has_tables(each) for each in typing.get_args(hint) if each is not Ellipsis)


def table_bytes(hint: Any, value: Any) -> int:
    """Return the bytes of the tables in a value of that type."""
    if value is None or not has_tables(hint):
        return 0
    if isinstance(hint, np.dtype):
        return int(value.nbytes)
    hint = _without_none(hint)
    if is_dataclass(hint):
        return sum(
            table_bytes(kind, getattr(value, name))
            for name, _, kind in _model_fields(typing.cast(type, hint))
        )
    return sum(table_bytes(typing.get_args(hint)[1], each) for each in value.values())


@functools.cache
def _without_none(hint: Any) -> Any:
    """Return the type without "| None"."""
    if typing.get_origin(hint) in (UnionType, typing.Union):
        members = [each for each in typing.get_args(hint) if each is not NoneType]
        return members[0] if len(members) == 1 else hint
    return hint


@functools.cache
def _item_class(hint: Any) -> Any:
    """Return the item type of a list of objects, None for other types."""
    arguments = typing.get_args(hint)
    listed = typing.get_origin(hint) is tuple and arguments[-1] is Ellipsis
    return arguments[0] if listed and is_dataclass(arguments[0]) else None
