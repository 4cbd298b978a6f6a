"""Change JSON documents by a seed, as a hostile or broken writer might make them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

from tests.support.snapshots import HOSTILE_NAME

Place = tuple[Any, Any]  # an object or list, and the key or number in it

NUMBERS = [-1, 0, 1, 7, 32, 33, 129, 999, 65536, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63,
           (1 << 64) - 1, 1 << 64, 10**30, -(1 << 63), 1.5, -0.5, 1e300, math.nan, math.inf]  # fmt: skip
TEXTS = ["", " ", "x", "\0", "a\0b", "\ud800", "\udc80\udcff", HOSTILE_NAME, "ä" * 300, "a" * 10_000, "\n",
         "-1", "10.0.0.1", "10.0.0.1/99", "10.0.0.0/8", "0.0.0.0/0", "999.1.1.1", "10.0.0.1/", "/24", "::1",
         "fe80::1%eth0", "fd00::/64", "::/0", "1.2.3.4/24/5", "all", "container:", "container:x", "host",
         "0-3,8", "1:2", "netns:x", "vnet:net=a", "vnet:net=shop kind=nat subnet=x gateway=y", "!eth0",
         "{a,b}", "@set", "1-", "http", "%", "80-70", "tcp", "02:42:00:00:00:01", "9" * 5000]  # fmt: skip
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"a": 1}, [1, 2], ["x"]]


def mutated(whole: Any, chance: random.Random) -> Any:
    """Return a copy with one to three changed fields, most of them of the same type."""
    made = copy.deepcopy(whole)
    for _ in range(chance.choice((1, 1, 2, 3))):
        fields: dict[str, list[Place]] = {}
        for name, place in _places(made):
            fields.setdefault(name, []).append(place)
        if fields:
            _mutate(list(fields.values()), chance)
    return made


def _places(whole: Any, name: str = "") -> Iterator[tuple[str, Place]]:
    """Return every value with the name of its field, the same for all items of a list."""
    items = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    for key, value in list(items):
        inner = f"{name}.{'*' if str(key).isdigit() else key}"
        yield inner, (whole, key)
        yield from _places(value, inner)


def _mutate(fields: list[list[Place]], chance: random.Random) -> None:
    places = chance.choice(fields)
    inside, key = chance.choice(places)
    old = inside[key]
    if chance.random() < 0.4:  # the same everywhere
        new = _alike(old, [place for each in fields for place in each], chance)
        for each, its in places:
            each[its] = copy.deepcopy(new)
        return
    match chance.randrange(12):
        case 0:
            inside[key] = chance.choice(OTHERS + NUMBERS + TEXTS)
        case 1:
            del inside[key]
        case 2:
            inside[key] = _deep(old, chance)
        case 3:
            other, its = chance.choice(chance.choice(fields))
            inside[key] = copy.deepcopy(other[its])
        case 4 if isinstance(inside, list):
            inside.insert(key, copy.deepcopy(old))
        case 4 if isinstance(inside, dict):
            inside[chance.choice([*map(str, NUMBERS), *TEXTS])] = inside.pop(key)
        case _:
            inside[key] = _alike(old, [place for each in fields for place in each], chance)


def _deep(value: Any, chance: random.Random) -> Any:
    for _ in range(chance.choice((1, 3, 400))):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def _alike(old: Any, places: list[Place], chance: random.Random) -> Any:
    """Return another value of the same type."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float)):
        return chance.choice([n for n in NUMBERS if isinstance(n, type(old))])
    if isinstance(old, str):
        return chance.choice([*TEXTS, old * 2, old[:-1], old + "/64"])
    alike = [inside[key] for inside, key in places if type(inside[key]) is type(old)]
    return copy.deepcopy(chance.choice(alike)) if alike else old
