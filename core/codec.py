"""Values of the model to JSON's own types and back, strictly, by the type hints of their dataclasses."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import numpy as np

Encoder = Callable[[Any], Any]
Decoder = Callable[[Any], Any]

_SCALARS = (str, int, float, bool)
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}


class WrongValue(Exception):
    """A value that is not what the model holds there; `path` leads to it, outermost first."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path: list[str] = []

    def inside(self, step: str) -> WrongValue:
        """The same, seen from one level further out."""
        self.path.insert(0, step)
        return self


def _mismatch(wanted: str, got: object) -> WrongValue:
    return WrongValue(f"{wanted} should be here, not {_KINDS.get(type(got), 'a number')}")


@functools.cache
def encoder(hint: Any) -> Encoder | None:
    """How values of that type become JSON; None where they are JSON already. TypeError for a type unknown."""
    if is_dataclass(hint):
        return _class_encoder(typing.cast(type, hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS or hint is type(None) or origin is typing.Literal:
        return None
    if hint is np.ndarray:
        return encode_columns
    if origin is frozenset:
        return sorted
    if origin is tuple:
        return _sequence_encoder(encoder(arguments[0]))
    if origin is Mapping:
        return _mapping_encoder(encoder(arguments[1]))
    if origin in (types.UnionType, typing.Union):
        special = [each for each in map(encoder, arguments) if each]
        if not special:
            return None
        return lambda value: None if value is None else special[0](value)
    raise TypeError(f"no JSON form for {hint!r}")


def plain(value: Any) -> Any:
    """A dataclass of the model as JSON's own types."""
    hint: Any = type(value)
    encode = encoder(hint)
    return encode(value) if encode else value


def _sequence_encoder(item: Encoder | None) -> Encoder:
    return list if item is None else lambda value: [item(each) for each in value]


def _mapping_encoder(item: Encoder | None) -> Encoder:
    if item is None:
        return lambda value: {str(key): each for key, each in value.items()}
    return lambda value: {str(key): item(each) for key, each in value.items()}


def _class_encoder(owner: type) -> Encoder:
    hints = typing.get_type_hints(owner)
    parts = [(each.name, json_name(each.name), encoder(hints[each.name])) for each in fields(owner)]

    def encode(value: Any) -> dict[str, Any]:
        return {
            said: form(getattr(value, name)) if form else getattr(value, name) for name, said, form in parts
        }

    return encode


def json_name(name: str) -> str:
    """What a field is called in JSON: without the underscore that tells it from a word of Python's."""
    return name.rstrip("_")


def encode_columns(rows: np.ndarray) -> dict[str, Any]:
    """A structured array as one list (bytes: one hexadecimal text) a column, all rows' values in turn."""
    columns: dict[str, Any] = {}
    for name in rows.dtype.names or ():
        column = np.ascontiguousarray(rows[name])
        wide = column.ndim > 1 and column.dtype == np.uint8
        columns[name] = column.tobytes().hex() if wide else column.ravel().tolist()
    return columns


@functools.cache
def decoder(hint: Any) -> Decoder:
    """How JSON becomes values of that type; the function raises WrongValue. TypeError for a type unknown."""
    if is_dataclass(hint):
        return _class_decoder(typing.cast(type, hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return _scalar_decoder(hint)
    if origin is frozenset or (origin is tuple and arguments[-1] is ...):
        return _sequence_decoder(arguments[0], origin)
    if origin is tuple:
        return _fixed_decoder(tuple(map(decoder, arguments)))
    if origin is Mapping:
        return _mapping_decoder(*arguments)
    if origin in (types.UnionType, typing.Union):
        return _union_decoder(arguments)
    raise TypeError(f"no JSON form for {hint!r}")


def _scalar_decoder(kind: type) -> Decoder:
    wanted = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[kind]

    def decode(value: Any) -> Any:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise _mismatch(wanted, value)
        return _bounded(value, kind) if kind in (int, float) else value

    return decode


def _bounded(value: Any, kind: type) -> Any:
    if not -(1 << 63) <= value < 1 << 64:
        raise WrongValue("a number here is too large")
    return kind(value)


def _sequence_decoder(item_hint: Any, build: Callable[[list[Any]], Any]) -> Decoder:
    item = decoder(item_hint)

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise _mismatch("a list", value)
        items: list[Any] = []
        try:
            for each in value:
                items.append(item(each))
        except WrongValue as error:
            raise error.inside(f"[{len(items)}]") from None
        return build(items)

    return decode


def _fixed_decoder(items: tuple[Decoder, ...]) -> Decoder:
    def decode(value: Any) -> Any:
        if type(value) is not list or len(value) != len(items):
            raise WrongValue(f"a list of {len(items)} should be here")
        return tuple(item(each) for item, each in zip(items, value, strict=True))

    return decode


def _mapping_decoder(key_hint: Any, item_hint: Any) -> Decoder:
    item = decoder(item_hint)

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        made: dict[Any, Any] = {}
        for key, each in value.items():
            try:
                made[_whole(key) if key_hint is int else key] = item(each)
            except WrongValue as error:
                raise error.inside(f".{key[:40]}") from None
        return made

    return decode


def _whole(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 20):
        raise WrongValue("a whole number should be the key here")
    return int(key)


def _union_decoder(arguments: tuple[Any, ...]) -> Decoder:
    some = [each for each in arguments if each is not type(None)]
    if len(some) == 1:
        only = decoder(some[0])
        return lambda value: None if value is None else only(value)
    kinds = {kind: decoder(kind) for kind in some}

    def decode(value: Any) -> Any:
        if type(value) not in kinds:
            raise _mismatch("a text, a number or true or false", value)
        return kinds[type(value)](value)

    return decode


def _class_decoder(owner: type) -> Decoder:
    hints = typing.get_type_hints(owner)
    parts = {json_name(each.name): _field_decoder(each, hints[each.name]) for each in fields(owner)}
    names = {json_name(each.name): each.name for each in fields(owner)}
    needed = {json_name(each.name) for each in fields(owner) if not has_default(each)}

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        if value.keys() != parts.keys() and not needed <= value.keys() <= parts.keys():
            raise _other_keys(value.keys(), parts.keys(), needed)
        made: dict[str, Any] = {}
        for name, part in parts.items():
            if name not in value:
                continue  # written before there was such a field: its default says so
            try:
                made[names[name]] = part(value[name])
            except WrongValue as error:
                raise error.inside(f".{name}") from None
        return owner(**made)

    return decode


def has_default(field: Field[Any]) -> bool:
    """Whether a value may be made without the field."""
    return field.default is not MISSING or field.default_factory is not MISSING


def _other_keys(
    got: typing.AbstractSet[str], known: typing.AbstractSet[str], needed: typing.AbstractSet[str]
) -> WrongValue:
    missing, more = sorted(needed - got), sorted(got - known)
    if more:
        return unknown(more[0])
    return WrongValue(f'"{missing[0]}" is missing')


def unknown(name: str) -> WrongValue:
    """A field that this program's model does not have."""
    return WrongValue(f'"{name[:40]}" is not known here: a newer vnet-tui may have written it')


def _field_decoder(field: Field[Any], hint: Any) -> Decoder:
    """An array's columns are not in its type hint: the field's default, an empty array, has them."""
    if hint is not np.ndarray:
        return decoder(hint)
    empty: Any = field.default_factory
    dtype = empty().dtype
    return lambda value: decode_columns(value, dtype)


def decode_columns(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """A read-only structured array from what `encode_columns` made; raises WrongValue where it is not so."""
    names = dtype.names or ()
    if type(value) is not dict:
        raise _mismatch("an object", value)
    if value.keys() != set(names):
        raise _other_keys(value.keys(), set(names), set(names))
    columns: dict[str, np.ndarray] = {}
    for name in names:
        try:
            columns[name] = _column(value[name], dtype[name])
        except WrongValue as error:
            raise error.inside(f".{name}") from None
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise WrongValue("the columns are not of one length")
    rows = np.zeros(lengths.pop(), dtype)
    for name, column in columns.items():
        rows[name] = column
    rows.flags.writeable = False
    return rows


def _column(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    base, shape = dtype.subdtype or (dtype, ())
    width = math.prod(shape)
    try:
        if base == np.uint8 and shape:
            flat = np.frombuffer(bytes.fromhex(value), np.uint8)
        elif type(value) is list and set(map(type, value)) <= {bool if base == np.bool_ else int}:
            flat = np.array(value, base)
        else:
            raise _mismatch(
                "a list of true and false" if base == np.bool_ else "a list of whole numbers", value
            )
        return flat.reshape(len(flat) // width, *shape)
    except (TypeError, ValueError, OverflowError):
        raise WrongValue("the values of this column do not fit it") from None
