"""Run `vnet-tui record`, `replay` and `bundle`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.text import safe
from tui.command import (
    CHECK_FIRST,
    CommandError,
    load_with_fast_flows,
    require_terminal,
    save,
    size_of,
    span_of,
    unreadable,
)

if TYPE_CHECKING:
    from core.recording import Limits, Progress
    from tui.bundle import BundleContents
    from tui.sources import ReplaySource

_PROGRESS_INTERVAL = 1.0
_MEASURED_FOR = 1.0  # seconds, for the speeds in a bundle
_START_SECONDS = 0.1  # seconds after which a file that can't be made is noticed


def run(options: argparse.Namespace) -> int:
    """Run "record", "replay" or "bundle"; returns the exit code. Raises CommandError."""
    path = Path(options.file)
    if options.command == "record":
        return record(path, options.seconds, options.size)
    if options.command == "bundle":
        return bundle(path, options.source)
    require_terminal()
    from tui.app import run as run_dashboard

    return run_dashboard(open_recording(path), options.ascii)


def record(path: Path, seconds: float | None, size: int | None) -> int:
    """Record this host into a new file until a limit, Ctrl-C or SIGTERM."""
    from core.model import RECORDING_DEMAND
    from core.recording import Limits, Recorder
    from core.watch import Watcher
    from tui.cli.fastpath_agent import SharedFlows

    usual = Limits()
    limits = Limits(seconds or usual.seconds, size or usual.size)
    over = threading.Event()
    recorder = Recorder(path, limits, over.set)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: recorder.stop(f"{signal.Signals(number).name} ended it"))
    recorder.start()
    fast = SharedFlows()
    watcher = Watcher(recorder.put, fast_flows=fast)
    watcher.set_demand(RECORDING_DEMAND)
    if over.wait(_START_SECONDS):
        return _ended(path, recorder.progress)
    watcher.start()
    _print_progress(f"recording to {safe(str(path))}, at most {_limits_text(limits)}; Ctrl-C stops it\n")
    try:
        while not over.wait(_PROGRESS_INTERVAL):
            if sys.stderr.isatty():
                made = recorder.progress
                _print_progress(f"\r{span_of(made.seconds)}  {made.moments} moments  {size_of(made.size)}   ")
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
        raise CommandError(f"can't record into {name}: {made.ended} before the first moment")
    start = "\r" if sys.stderr.isatty() else ""
    _print_progress(
        f"{start}{span_of(made.seconds)}, {made.moments} moments, {size_of(made.size)}, until {made.ended}\n"
    )
    _print_progress(f"to open it: vnet-tui replay {name}\n")
    return 0


def _print_progress(words: str) -> None:
    print(words, end="", file=sys.stderr, flush=True)


def _limits_text(limits: Limits) -> str:
    return f"{span_of(limits.seconds)} min or {size_of(limits.size)}"


def open_recording(path: Path) -> ReplaySource:
    """Open a recording as a source; raises CommandError if it can't be read."""
    from core.recording import Recording
    from core.serialize import CorruptFile
    from tui.sources import ReplaySource

    name = safe(str(path))
    try:
        recording = Recording(path)
        recording.moment(0)
        return ReplaySource(recording, path.name)
    except OSError as error:
        raise unreadable(path, error) from None
    except CorruptFile as error:
        raise CommandError(f"can't read {name}: {safe(str(error))}") from None


def bundle(path: Path, source: str | None) -> int:
    """Write one file with all that can be seen now, or in a dump."""
    from core.topology import Topology
    from tui.bundle import BundleContents, bundle_of

    if source:
        snapshot, fast = load_with_fast_flows(Path(source))
        kept = BundleContents(Topology(snapshot), fast=fast)
    else:
        kept = _read_this_host()
    _print_progress(f"{save(path, bundle_of(path.name, kept))}; {CHECK_FIRST}\n")
    return 0


def _read_this_host() -> BundleContents:
    """Read this host with counters, measured flows and the journal."""
    from core.collect.links import read_stats
    from core.collect.snapshot import read_snapshot
    from core.flows.meter import FlowMeter
    from core.topology import Topology
    from core.topology.flow_index import FlowView
    from core.watch.rates import read_timed
    from tui.bundle import BundleContents
    from tui.cli.diagnosis import with_health
    from tui.cli.fastpath_agent import SharedFlows
    from tui.cli.session import ChangeSession

    session, snapshot = ChangeSession(), with_health(read_snapshot())
    earlier = () if session.missing_rights() else session.history()
    meter, fast = FlowMeter(), SharedFlows()
    for seconds in (0.0, _MEASURED_FOR):
        time.sleep(seconds)
        readings, flows = read_timed(snapshot.namespaces), fast()
        meter.feed(readings, flows, time.monotonic(), time.time())
    fast.close()
    snapshot = replace(snapshot, conntracks={one.table.ns: one.table for one in readings})
    topology = Topology(snapshot)
    counters = read_stats(snapshot.namespaces.values())
    return BundleContents(topology, FlowView.of(topology, meter.table), counters, flows, history=earlier)
