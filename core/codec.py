"""Convert dataclasses of the model to JSON types and back, strictly by type hints."""

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
_JSON_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


class WrongValue(Exception):
    """A value of the wrong type or range; `path` is where, outermost first."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path: list[str] = []

    def inside(self, step: str) -> WrongValue:
        """Prepend a step to the path."""
        self.path.insert(0, step)
        return self


def _mismatch(expected: str, got: object) -> WrongValue:
    return WrongValue(f"expected {expected}, not {_JSON_TYPES.get(type(got), 'a number')}")


@functools.cache
def encoder(hint: Any) -> Encoder | None:
    """Return the encoder of a type, None if its values are JSON types already.

    Raises TypeError for an unknown type."""
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
        encoders = [each for each in map(encoder, arguments) if each]
        if not encoders:
            return None
        return lambda value: None if value is None else encoders[0](value)
    raise TypeError(f"no JSON form for {hint!r}")


def plain(value: Any) -> Any:
    """Encode a dataclass of the model as JSON types."""
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
            key: encode_field(getattr(value, name)) if encode_field else getattr(value, name)
            for name, key, encode_field in parts
        }

    return encode


def json_name(name: str) -> str:
    """Return a field's JSON key: its name without the underscore of `try_`."""
    return name.rstrip("_")


def encode_columns(rows: np.ndarray) -> dict[str, Any]:
    """Encode a structured array as a list (bytes: a hexadecimal string) per column."""
    columns: dict[str, Any] = {}
    for name in rows.dtype.names or ():
        column = np.ascontiguousarray(rows[name])
        wide = column.ndim > 1 and column.dtype == np.uint8
        columns[name] = column.tobytes().hex() if wide else column.ravel().tolist()
    return columns


@functools.cache
def decoder(hint: Any) -> Decoder:
    """Return the decoder of a type; it raises WrongValue.

    Raises TypeError for an unknown type."""
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
    expected = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}[kind]

    def decode(value: Any) -> Any:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise _mismatch(expected, value)
        return _bounded(value, kind) if kind in (int, float) else value

    return decode


def _bounded(value: Any, kind: type) -> Any:
    if not -(1 << 63) <= value < 1 << 64:
        raise WrongValue("the number is too large")
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
            raise WrongValue(f"expected a list of {len(items)}")
        return tuple(item(each) for item, each in zip(items, value, strict=True))

    return decode


def _mapping_decoder(key_hint: Any, item_hint: Any) -> Decoder:
    item = decoder(item_hint)

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        decoded: dict[Any, Any] = {}
        for key, each in value.items():
            try:
                decoded[_integer(key) if key_hint is int else key] = item(each)
            except WrongValue as error:
                raise error.inside(f".{key[:40]}") from None
        return decoded

    return decode


def _integer(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 20):
        raise WrongValue("expected an integer as the key")
    return int(key)


def _union_decoder(arguments: tuple[Any, ...]) -> Decoder:
    members = [each for each in arguments if each is not type(None)]
    if len(members) == 1:
        decode_member = decoder(members[0])
        return lambda value: None if value is None else decode_member(value)
    decoders = {member: decoder(member) for member in members}

    def decode(value: Any) -> Any:
        if type(value) not in decoders:
            raise _mismatch("a string, a number or true or false", value)
        return decoders[type(value)](value)

    return decode


def _class_decoder(owner: type) -> Decoder:
    hints = typing.get_type_hints(owner)
    decoders = {json_name(each.name): _field_decoder(each, hints[each.name]) for each in fields(owner)}
    names = {json_name(each.name): each.name for each in fields(owner)}
    needed = {json_name(each.name) for each in fields(owner) if not has_default(each)}

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        if value.keys() != decoders.keys() and not needed <= value.keys() <= decoders.keys():
            raise _key_error(value.keys(), decoders.keys(), needed)
        decoded: dict[str, Any] = {}
        for key, decode_field in decoders.items():
            if key not in value:
                continue  # an older version had no such field: its default applies
            try:
                decoded[names[key]] = decode_field(value[key])
            except WrongValue as error:
                raise error.inside(f".{key}") from None
        return owner(**decoded)

    return decode


def has_default(field: Field[Any]) -> bool:
    """Return whether a dataclass can be created without the field."""
    return field.default is not MISSING or field.default_factory is not MISSING


def _key_error(
    got: typing.AbstractSet[str], known: typing.AbstractSet[str], needed: typing.AbstractSet[str]
) -> WrongValue:
    missing, more = sorted(needed - got), sorted(got - known)
    if more:
        return unknown(more[0])
    return WrongValue(f'"{missing[0]}" is missing')


def unknown(name: str) -> WrongValue:
    """Return the error for a field that the model doesn't have."""
    return WrongValue(f'unknown key "{name[:40]}": a newer vnet-tui may have written it')


def _field_decoder(field: Field[Any], hint: Any) -> Decoder:
    """Return a field's decoder; an array's columns are those of the field's default."""
    if hint is not np.ndarray:
        return decoder(hint)
    empty: Any = field.default_factory
    dtype = empty().dtype
    return lambda value: decode_columns(value, dtype)


def decode_columns(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Decode the output of `encode_columns` to a read-only structured array.

    Raises WrongValue."""
    names = dtype.names or ()
    if type(value) is not dict:
        raise _mismatch("an object", value)
    if value.keys() != set(names):
        raise _key_error(value.keys(), set(names), set(names))
    columns: dict[str, np.ndarray] = {}
    for name in names:
        try:
            columns[name] = _column(value[name], dtype[name])
        except WrongValue as error:
            raise error.inside(f".{name}") from None
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise WrongValue("the columns differ in length")
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
            raise _mismatch("a list of true and false" if base == np.bool_ else "a list of integers", value)
        return flat.reshape(len(flat) // width, *shape)
    except (TypeError, ValueError, OverflowError):
        raise WrongValue("a value of this column is out of range or of the wrong type") from None
