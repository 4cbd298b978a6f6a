"""Find moments to compare: dumps, bundles, moments of recordings, this host."""

from __future__ import annotations

import os
import re
import stat
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.diff.compare import Difference, differences
from core.model import Snapshot
from core.text import safe
from tui.command import CommandError, is_recording, load, output_folder, unreadable

if TYPE_CHECKING:
    from core.recording import Recording

NOW = "now"
ENDINGS = (".vnet", ".vnetrec", ".tar.gz")
_SPAN = re.compile(r"([+-])(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_CLOCKS = ("%H:%M:%S", "%H:%M")
_DATES = tuple(
    f"{date}{between}{clock}" for date in ("%Y-%m-%d",) for between in ("T", " ") for clock in _CLOCKS
)
_DAY = 86400


@dataclass(frozen=True, slots=True)
class Moment:
    """One side of a comparison: `source` is a file's name, or "now".

    `place` is the index of its frame in the recording at `path`, None for other sources."""

    source: str
    snapshot: Snapshot
    path: Path | None = None
    place: int | None = None

    @property
    def title(self) -> str:
        """The source, and when the snapshot was taken; safe to print."""
        return f"{safe(self.source)} of {clock_text(self.snapshot.taken_at)}"


def clock_text(at: float) -> str:
    """Format a Unix time as local date and time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f}"


def moment_of(text: str, read_now: Callable[[], Snapshot] | None = None) -> Moment:
    """Return the moment that FILE, FILE@TIME or "now" names. Raises CommandError."""
    if text == NOW and read_now is not None:
        return Moment(NOW, read_now())
    path, when = _split(text)
    if not path.is_fifo() and is_recording(path):  # what is read from a pipe is gone
        with opened(path) as recording:
            return _moment_in(recording, path, when)
    if when:
        raise CommandError(
            f"can't find {safe(when)} in {safe(str(path))}: only recordings have more than one moment. "
            f"Try: {safe(str(path))} without @{safe(when)}"
        )
    return Moment(path.name, load(path))


def _split(text: str) -> tuple[Path, str]:
    """Split FILE@TIME; a file whose name contains an @ comes first."""
    name, at, when = text.rpartition("@")
    if not at or not name or Path(text).exists():
        return Path(text), ""
    return Path(name), when


@contextmanager
def opened(path: Path) -> Iterator[Recording]:
    """Open a recording; errors of its file become CommandError."""
    from core.recording import Recording
    from core.serialize import CorruptFile

    try:
        recording = Recording(path)
        try:
            yield recording
        finally:
            recording.close()
    except OSError as error:
        raise unreadable(path, error) from None
    except CorruptFile as error:
        raise CommandError(f"can't read {safe(str(path))}: {safe(str(error))}") from None


def _moment_in(recording: Recording, path: Path, when: str) -> Moment:
    walls = [frame.wall for frame in recording.frames]
    place = len(walls) - 1
    if when:
        at = _time_of(when, walls[0], walls[-1], path)
        place = bisect_right(walls, at) - 1
        if place < 0 or at > walls[-1] + _SLACK:
            raise CommandError(
                f"can't find {safe(when)} in {safe(str(path))}: it has moments from {clock_text(walls[0])} "
                f"to {clock_text(walls[-1])}. Try: {safe(path.name)}@{_clock(walls[-1])}"
            )
    return Moment(path.name, recording.moment(place).snapshot, path, place)


_SLACK = 0.999  # seconds: a clock without fractions names the last moment in its second


def _time_of(text: str, first: float, last: float, path: Path) -> float:
    """Return the Unix time of "-5m" (before the end), "+30s" or a clock."""
    if found := _SPAN.fullmatch(text):
        seconds = float(found[2]) * _SECONDS[found[3]]
        return first + seconds if found[1] == "+" else last - seconds
    dates = (_parsed(text, form) for form in _DATES)
    if (date := next((at for at in dates if at is not None), None)) is not None:
        return date + _SLACK
    day = time.strftime("%Y-%m-%d ", time.localtime(last))
    clocks = (_parsed(day + text, f"%Y-%m-%d {form}") for form in _CLOCKS)
    if (at := next((one for one in clocks if one is not None), None)) is not None:
        at += _SLACK
        return at - _DAY if at > last + _SLACK and at - _DAY >= first else at
    raise CommandError(
        f"can't read the time {safe(text)} of {safe(str(path))}: it isn't a clock or a span. "
        f"Try: {safe(path.name)}@-5m (before its end) or {safe(path.name)}@{_clock(last)}"
    )


def _parsed(text: str, form: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, form))
    except (ValueError, OverflowError):
        return None


def _clock(at: float) -> str:
    return clock_text(at).partition(" ")[2]


def newest_file() -> Path | None:
    """Return this user's newest dump, bundle or recording in the output folder."""
    found: list[tuple[float, Path]] = []
    with suppress(OSError):
        for path in output_folder().iterdir():
            if path.name.endswith(ENDINGS) and (at := _written_at(path)):
                found.append((at, path))
    return max(found)[1] if found else None


def _written_at(path: Path) -> float:
    """Return when a file was written, 0 for other kinds and for other users' files."""
    with suppress(OSError):
        known = path.lstat()
        if stat.S_ISREG(known.st_mode) and known.st_uid == os.geteuid():
            return known.st_mtime
    return 0.0


# ---- when a difference came about


def compared(old: Moment, new: Moment) -> tuple[Difference, ...]:
    """Return the differences, those of one recording with their times, newest first.

    Raises CommandError."""
    found = differences(old.snapshot, new.snapshot)
    if old.path is None or old.path != new.path or old.place is None or new.place is None or not found:
        return found
    with opened(old.path) as recording:
        timed = _Timing(recording, old.place, new.place).timed(found)
    return tuple(sorted(timed, key=lambda one: -one.at))


class _Timing:
    """Find the moment from which on each difference exists, by bisection."""

    def __init__(self, recording: Recording, first: int, last: int) -> None:
        self._recording, self._first, self._last = recording, first, last
        self._base = recording.moment(first).snapshot
        self._sentences: dict[int, frozenset[str]] = {first: frozenset()}

    def timed(self, found: tuple[Difference, ...]) -> list[Difference]:
        """Return the differences with their times; a recorded event has the exact one."""
        low, high = sorted((self._first, self._last))
        events: dict[str, float] = {}
        if self._first < self._last:
            for changes in list(self._recording.changes())[low + 1 : high + 1]:
                events |= {change.sentence: change.at for change in changes}
        return [replace(one, at=events.get(one.sentence) or self._since(one.sentence)) for one in found]

    def _since(self, sentence: str) -> float:
        without, with_it = self._first, self._last
        while abs(with_it - without) > 1:
            middle = (without + with_it) // 2
            if sentence in self._at(middle):
                with_it = middle
            else:
                without = middle
        return self._recording.frames[max(without, with_it)].wall

    def _at(self, place: int) -> frozenset[str]:
        if place not in self._sentences:
            found = differences(self._base, self._recording.moment(place).snapshot)
            self._sentences[place] = frozenset(one.sentence for one in found)
        return self._sentences[place]
