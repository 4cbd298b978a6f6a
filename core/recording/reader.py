"""Reads a recording: its time line at once, its moments when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.codec import WrongValue
from core.model import Change, LinkStats
from core.recording import frames
from core.recording.delta import NOTHING, changed, table_bytes
from core.recording.frames import KEY, Body, Frame, Moment, check_moment, damaged
from core.serialize import CorruptFile, check_always

_STATS: Any = LinkStats | None
_MAX_TABLES = 1 << 28  # bytes of all tables of one moment
_MAX_JSON_OF_A_GROUP = 1 << 28  # bytes of JSON from a key frame on to the next
_MOST_MOMENTS = 64  # that are remembered, and how many bytes of tables in them
_MOST_REMEMBERED = 1 << 27
_MOST_STATS = 512


@dataclass(frozen=True, slots=True)
class _Known:
    """A moment that was read, the bytes of JSON since its key frame, and those of its tables."""

    moment: Moment
    text: int
    tables: int


class Recording:
    """A recording file, opened and checked. `frames` are its moments on the time line; `notice` says in
    words where the file is not whole. For one thread at a time. It and its methods raise OSError and
    CorruptFile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            size = self._file.seek(0, 2)
            self._file.seek(0)
            found = frames.scan(self._file, size)
            if not found.frames:
                raise CorruptFile(
                    "the recording was cut off before its first moment", try_="Record for longer."
                )
        except BaseException:
            self._file.close()
            raise
        self.frames, self.ended = found.frames, found.ended
        self.notice = _notice(found)
        self._moments: dict[int, _Known] = {}
        self._stats: dict[int, LinkStats | None] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def moment(self, place: int) -> Moment:
        """The moment of that frame. Parts that are as in the moment before are the same objects."""
        first = self._key_before(place)
        known = max((each for each in self._moments if first <= each <= place), default=first - 1)
        found = self._moments.get(known)
        for number in range(known + 1, place + 1):
            found = self._next(number, found)
            self._keep(number, found)
        assert found is not None
        return found.moment

    def _keep(self, place: int, known: _Known) -> None:
        """Remember a moment for steps backwards, and forget those remembered the longest ago."""
        self._moments.pop(place, None)
        self._moments[place] = known
        held = sum(each.tables for each in self._moments.values())
        while len(self._moments) > _MOST_MOMENTS or (held > _MOST_REMEMBERED and len(self._moments) > 1):
            held -= self._moments.pop(next(iter(self._moments))).tables

    def stats(self, first: int, end: int) -> Iterator[LinkStats]:
        """The readings of the links' counters in the frames from `first` to before `end`, each once."""
        start = self._key_before(first)
        known = max((each for each in self._stats if start <= each < first), default=start - 1)
        latest = self._stats.get(known)
        for place in range(known + 1, end):
            before, latest = latest, self._stats_of(place, latest)
            if latest is not None and latest is not before and place >= first:
                yield latest

    def _stats_of(self, place: int, before: LinkStats | None) -> LinkStats | None:
        if place not in self._stats:
            one = self.frames[place]
            body, whole = self._body(one)
            found = _part_of(whole, "stats")
            old = NOTHING if one.kind == KEY else before
            made = before if found is None else _checked(_STATS, old, found, body, one)
            self._stats[place] = made
            if len(self._stats) > _MOST_STATS:
                self._stats.pop(next(iter(self._stats)))
        return self._stats[place]

    def changes(self) -> Iterator[tuple[Change, ...]]:
        """What each frame tells to have changed, in turn."""
        for one in self.frames:
            if not one.changes:
                yield ()
                continue
            body, whole = self._body(one)
            found = _part_of(whole, "changes")
            yield () if found is None else _checked(tuple[Change, ...], (), found, body, one)

    def _key_before(self, place: int) -> int:
        while self.frames[place].kind != KEY:
            place -= 1
        return place

    def _next(self, place: int, before: _Known | None) -> _Known:
        one = self.frames[place]
        body, whole = self._body(one)
        text = body.json_length
        old = NOTHING
        if one.kind != KEY and before is not None:
            text += before.text
            old = replace(before.moment, changes=())
        if text > _MAX_JSON_OF_A_GROUP:
            raise CorruptFile("the recording holds too much between two whole moments", try_=frames.NOT_OURS)
        if not isinstance(whole, list):
            raise damaged("a frame holds no moment", _where(one))
        if one.kind == KEY:
            _check_key_frame(whole, one)
        moment: Moment = _checked(Moment, old, whole, body, one)
        tables = table_bytes(Moment, moment)
        if tables > _MAX_TABLES:
            raise CorruptFile("a moment of the recording is too large to be held", try_=frames.NOT_OURS)
        check_moment(moment)
        return _Known(moment, text, tables)

    def _body(self, one: Frame) -> tuple[Body, Any]:
        self._file.seek(one.offset)
        body = Body(self._file.read(one.length))
        return body, body.json()


def _part_of(whole: Any, name: str) -> Any:
    """How one field of the moment differs, None where it does not."""
    return (
        whole[1].get(name)
        if isinstance(whole, list) and len(whole) > 1 and isinstance(whole[1], dict)
        else None
    )


def _check_key_frame(whole: Any, one: Frame) -> None:
    """A whole moment tells all that every snapshot has, whichever version wrote it."""
    told = _part_of(whole, "snapshot")
    try:
        check_always(told[1] if isinstance(told, list) and len(told) > 1 else {})
    except WrongValue as error:
        raise damaged(str(error), f"{_where(one)}, .snapshot") from None


def _checked(hint: Any, old: Any, found: Any, body: Body, one: Frame) -> Any:
    try:
        return changed(hint, old, found, body.part)
    except WrongValue as error:
        raise damaged(str(error), f"{_where(one)}, {''.join(error.path)}") from None


def _where(one: Frame) -> str:
    return f"frame {one.number}"


def _notice(found: frames.Scan) -> str:
    if found.ended:
        return ""
    last = time.strftime("%H:%M:%S", time.localtime(found.frames[-1].wall)) if found.frames else ""
    if found.rest:
        return f"The recording was cut short: {found.rest} bytes after {last} are no whole moment."
    return f"The recording does not say that it ended: what came after {last} was not written, or not yet."
