"""`vnet-tui record`, `replay` and `bundle`: what is kept in files."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.text import safe
from tui.command import CommandError, load_whole
from tui.keepsake import LOOK_FIRST, save, size_of, span_of

if TYPE_CHECKING:
    from core.recording import Limits, Progress
    from tui.bundle import Kept
    from tui.replay import ReplaySource

COMMANDS = ("record", "replay", "bundle")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BYTES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_LEAST_SIZE, _MOST_SIZE = 10_000, 2 * 1000**3
_MOST_SECONDS = 24 * 3600
_TELL_EVERY = 1.0
_MEASURED_FOR = 1.0  # seconds, for the speeds in a bundle
_BEGINNING = 0.1  # seconds in which a file that cannot be made is noticed


def seconds_of(text: str) -> float:
    """ "60s", "10m", "1.5h" as seconds; for argparse."""
    found = _SPAN.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no time up to a day: write 60s, 10m or 2h")
    return seconds


def bytes_of(text: str) -> int:
    """ "500k", "64M", "1G" as bytes; for argparse."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _BYTES[found[2].lower()]) if found else 0
    if not _LEAST_SIZE <= size <= _MOST_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 10k to 2G: write 64M")
    return size


def run(options: argparse.Namespace) -> int:
    """Do what one of COMMANDS asks for; returns the exit code. Raises CommandError."""
    path = Path(options.file)
    if options.command == "record":
        return record(path, options.seconds, options.size)
    if options.command == "bundle":
        return bundle(path, options.source)
    from tui.app import run as run_dashboard

    return run_dashboard(opened(path), options.ascii)


def record(path: Path, seconds: float | None, size: int | None) -> int:
    """Record this host into a new file until a limit, Ctrl-C or SIGTERM."""
    from core.recording import Limits, Recorder
    from core.watch import Watcher
    from tui.fastpath.keeping import SharedFlows

    usual = Limits()
    limits = Limits(seconds or usual.seconds, size or usual.size)
    over = threading.Event()
    recorder = Recorder(path, limits, over.set)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: recorder.stop(f"{signal.Signals(number).name} ended it"))
    recorder.start()
    fast = SharedFlows()
    watcher = Watcher(recorder.put, fast_flows=fast)
    watcher.read_all(True)
    if over.wait(_BEGINNING):
        return _ended(path, recorder.progress)
    watcher.start()
    _say(f"recording into {safe(str(path))}, {_words(limits)} at most; Ctrl-C ends it\n")
    try:
        while not over.wait(_TELL_EVERY):
            if sys.stderr.isatty():
                made = recorder.progress
                _say(f"\r{span_of(made.seconds)}  {made.moments} moments  {size_of(made.size)}   ")
    finally:
        watcher.stop()
        fast.close()
    return _ended(path, recorder.progress)


def _ended(path: Path, made: Progress) -> int:
    name = safe(str(path))
    if made.failed:
        raise CommandError(f"can't record into {name}: {made.ended}")
    if not made.moments:
        path.unlink(missing_ok=True)
        raise CommandError(f"nothing was recorded: {made.ended}")
    start = "\r" if sys.stderr.isatty() else ""
    _say(
        f"{start}{span_of(made.seconds)}, {made.moments} moments, {size_of(made.size)}, until {made.ended}\n"
    )
    _say(f"look at it with: vnet-tui replay {name}\n")
    return 0


def _say(words: str) -> None:
    print(words, end="", file=sys.stderr, flush=True)


def _words(limits: Limits) -> str:
    return f"{span_of(limits.seconds)} min or {size_of(limits.size)}"


def opened(path: Path) -> ReplaySource:
    """A recording whose first moment can be shown, as the dashboard's source; raises CommandError."""
    from core.recording import Recording
    from core.serialize import CorruptFile
    from tui.replay import ReplaySource

    name = safe(str(path))
    try:
        recording = Recording(path)
        recording.moment(0)
        return ReplaySource(recording, path.name)
    except OSError as error:
        raise CommandError(f"cannot read {name}: {error.strerror}") from None
    except CorruptFile as error:
        raise CommandError(f"cannot read {name}: {safe(str(error))}") from None


def bundle(path: Path, source: str | None) -> int:
    """Write one file with all that can be seen now, or in a dump."""
    from core.topology import Topology
    from tui.bundle import Kept, bundle_of

    if source:
        snapshot, fast = load_whole(Path(source))
        kept = Kept(Topology(snapshot), fast=fast)
    else:
        kept = _of_this_host()
    _say(f"{save(path, bundle_of(path.name, kept))}: {LOOK_FIRST}\n")
    return 0


def _of_this_host() -> Kept:
    """What is now, with the counters, the flows as measured and the changes of the journal."""
    from core.collect.links import read_stats
    from core.collect.snapshot import read_snapshot
    from core.flows.meter import FlowMeter
    from core.topology import Topology
    from core.topology.flow_index import FlowPicture
    from core.watch.flows import read_timed
    from tui.bundle import Kept
    from tui.change.session import Session
    from tui.fastpath.keeping import SharedFlows

    session, snapshot = Session(), read_snapshot()
    earlier = () if session.lacking() else session.earlier()
    meter, fast = FlowMeter(), SharedFlows()
    for seconds in (0.0, _MEASURED_FOR):
        time.sleep(seconds)
        readings, flows = read_timed(snapshot.namespaces), fast()
        meter.feed(readings, flows, time.monotonic(), time.time())
    fast.close()
    snapshot = replace(snapshot, conntracks={one.table.ns: one.table for one in readings})
    topology = Topology(snapshot)
    counters = read_stats(snapshot.namespaces.values())
    return Kept(topology, FlowPicture.of(topology, meter.table), counters, flows, earlier=earlier)
