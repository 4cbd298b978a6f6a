"""Run `vnet-tui capture`: print packets, or write them to pcapng files or a pipe."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.capture import CaptureError
from core.capture.encoder import Record
from core.capture.files import PacketFile, ReaderGone
from core.capture.lines import LineMaker
from core.capture.run import Capture, Limits, Progress, Settings
from core.capture.targets import Target, addresses_behind, find_target, is_flow
from core.collect.host import effective_capabilities, missing_capabilities
from core.collect.snapshot import read_snapshot
from core.model import Part
from core.text import safe
from core.topology import Topology
from tui.cli.capture_fastpath import left_to_kernel
from tui.command import CommandError, size_of, span_of

PARTS = frozenset({Part.LINKS, Part.CONTAINERS, Part.OVS, Part.HOST_FIREWALL})
_FILE_SECONDS, _OPEN_SECONDS, _RING_SECONDS = 600.0, 3600.0, 86_400.0
_NET_RAW = 13
_MOST_LINES = 2000  # a second: a terminal can't show more
_STANDARD_OUTPUT = "-"


def run(options: argparse.Namespace) -> int:
    """Capture until a limit or a signal; returns the exit code. Raises CommandError."""
    _check(options)
    if why := missing_rights():
        raise CommandError(why)
    try:
        topology = Topology(read_snapshot(PARTS | ({Part.CONNTRACK} if is_flow(options.what) else set())))
        target = find_target(topology, options.what, options.ports)
        return _run(options, topology, target)
    except CaptureError as error:
        raise CommandError(str(error)) from None


def _check(options: argparse.Namespace) -> None:
    """Refuse combinations of options that make no sense; raises CommandError."""
    if options.source:
        raise CommandError(
            "can't capture packets of a file: it doesn't hold any. Try: the same without --from"
        )
    if options.ring and options.file in (None, _STANDARD_OUTPUT):
        raise CommandError("can't make a ring of files: there is no file. Try: -w FILE --ring 5")
    if options.file == _STANDARD_OUTPUT and sys.stdout.isatty():
        raise CommandError(
            "can't write packets to a terminal: pcapng is binary. Try: the same without -w, "
            "or with `| wireshark -k -i -`"
        )


def missing_rights(action: str = "capture packets") -> str:
    """Return why this process may not capture in every namespace, "" where it may."""
    lacking = [name for name in missing_capabilities() if name == "CAP_SYS_ADMIN"]
    if not effective_capabilities() >> _NET_RAW & 1:
        lacking = ["CAP_NET_RAW", *lacking]
    if not lacking:
        return ""
    return f"can't {action}: this process lacks {' and '.join(lacking)}. Try: run it with sudo"


def _limits(options: argparse.Namespace) -> Limits:
    usual = Limits()
    seconds = _FILE_SECONDS if options.file not in (None, _STANDARD_OUTPUT) else _OPEN_SECONDS
    seconds = _RING_SECONDS if options.ring else seconds
    return Limits(options.count, options.seconds or seconds, options.size or usual.size, options.ring)


def _run(options: argparse.Namespace, topology: Topology, target: Target) -> int:
    settings = Settings(
        target, topology, " ".join(options.filter), options.snap_length, not options.no_promiscuous,
        not options.no_comments, _limits(options), application(),
    )  # fmt: skip
    capture = Capture(settings)
    capture.open()
    try:
        output = _output(options, capture)
        capture.add_sink(output)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: capture.stop(signal.Signals(number).name))
        with left_to_kernel(addresses_behind(topology, target)):
            if target.note:
                _say(f"vnet-tui: note: {target.note}\n")
            _say(f"{_beginning(options, settings)}; Ctrl-C stops it\n")
            made = capture.run()
        output.close()
    finally:
        capture.close()
    return _ended(capture, output, made)


def _output(options: argparse.Namespace, capture: Capture) -> PacketFile | Lines:
    if options.file is None:
        return Lines.of(capture)
    path = None if options.file == _STANDARD_OUTPUT else Path(options.file)
    return capture.new_file(path)


def _beginning(options: argparse.Namespace, settings: Settings) -> str:
    """Describe what is captured, and how long."""
    target, limits = settings.target, settings.limits
    links = f", {len(target.links)} links" if len(target.links) > 1 else ""
    most = [f"{limits.count:,} packets"] if limits.count else []
    most += [f"{span_of(limits.seconds)} min"]
    if options.file not in (None, _STANDARD_OUTPUT):
        size = size_of(limits.size)
        most += [f"{limits.ring} files of {size}" if limits.ring else size]
    return f"capturing {safe(target.title)}{links}, at most {' or '.join(most)}"


def _ended(capture: Capture, output: PacketFile | Lines, made: Progress) -> int:
    """Report the end; returns the exit code. Raises CommandError."""
    missing = f", {made.dropped:,} dropped by the kernel" if made.dropped else ""
    plural = "" if made.packets == 1 else "s"
    _say(f"{made.packets:,} packet{plural} in {span_of(made.seconds)}{missing}, until {made.ended}\n")
    if made.error:
        raise CommandError(made.error)
    for name in output.names if isinstance(output, PacketFile) else ():
        _say(f"wrote {safe(name)}, {size_of(os.stat(name).st_size)}\n")  # noqa: PTH116
    return 0


def _say(words: str) -> None:
    print(words, end="", file=sys.stderr, flush=True)


def application() -> str:
    """Return the name and version that files have."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"vnet-tui {version('vnet-tui')}"
    except PackageNotFoundError:
        return "vnet-tui"


@dataclass(slots=True)
class Lines:
    """Print packets as lines, as many as a terminal can show."""

    maker: LineMaker
    second: int = 0
    printed: int = 0
    left_out: int = 0

    @classmethod
    def of(cls, capture: Capture) -> Lines:
        """Return the lines of an opened capture, on standard output in its encoding."""
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        return cls(line_maker(capture))

    def add(self, records: Sequence[Record]) -> str:
        """Print packets; those beyond the limit of a second are counted only."""
        now = int(time.monotonic())
        if now != self.second:
            self._count()
            self.second, self.printed = now, 0
        shown = records[: max(0, _MOST_LINES - self.printed)]
        self.printed, self.left_out = self.printed + len(shown), self.left_out + len(records) - len(shown)
        try:
            sys.stdout.write("".join(f"{safe(str(self.maker.line(block)))}\n" for _, block in shown))
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone("can't write lines: their reader has ended") from None
        except OSError as error:
            raise CaptureError(f"can't write the output: {error.strerror}") from None
        return ""

    def _count(self) -> None:
        if self.left_out:
            sys.stdout.write(f"({self.left_out:,} packets not shown)\n")
            self.left_out = 0

    def close(self) -> None:
        """Report the packets that were left out last."""
        self._count()
        sys.stdout.flush()


def line_maker(capture: Capture, brief: bool = False) -> LineMaker:
    """Return what makes lines of the packets of an opened capture."""
    annotator = capture.comments.annotator
    namespaces = [link.key.ns for link in capture.settings.target.links]
    return LineMaker(
        capture.names,
        capture.link_types,
        lambda number, address: annotator.name_of(namespaces[number], address),
        brief,
    )
