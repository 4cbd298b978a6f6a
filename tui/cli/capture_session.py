"""Implement the dashboard's CaptureService on this host."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.capture import CaptureError
from core.capture.buffer import PacketBuffer
from core.capture.encoder import Record
from core.capture.files import PacketFile
from core.capture.lines import PacketLine
from core.capture.run import Capture, Limits, Settings, thread_of
from core.capture.targets import Target, addresses_behind
from core.topology import Topology
from tui.cli.capture import application, line_maker, missing_rights
from tui.cli.capture_fastpath import left_to_kernel
from tui.command import CommandError, display_path, size_of
from tui.services import CaptureState

_SECONDS = 24 * 3600.0


class CaptureSession:
    """Implement tui.services.CaptureService."""

    def missing_rights(self) -> str:
        return missing_rights()

    def start(self, target: Target, topology: Topology, filter_text: str) -> RunningCapture:
        settings = Settings(
            target, topology, filter_text, limits=Limits(seconds=_SECONDS), application=application()
        )
        with _command_errors():
            capture = Capture(settings)
            capture.open()
            return RunningCapture(capture, addresses_behind(topology, target))


@contextmanager
def _command_errors() -> Iterator[None]:
    try:
        yield
    except CaptureError as error:
        raise CommandError(str(error)) from None


class RunningCapture:
    """Implement tui.services.PacketSource with a thread."""

    def __init__(self, capture: Capture, addresses: Sequence[str]) -> None:
        """Take over an opened capture, and begin.

        The kernel forwards for `addresses` meanwhile."""
        self._kernel = ExitStack()
        self._kernel.enter_context(left_to_kernel(addresses))
        self._capture, self._buffer = capture, PacketBuffer()
        self._maker = line_maker(capture, brief=True)
        self._file: PacketFile | None = None
        self._notice = ""
        self._lock = threading.Lock()
        capture.add_sink(self)
        thread_of(capture, lambda progress: self._ended()).start()

    def add(self, records: Sequence[Record]) -> str:
        """Take packets of the capture's thread; an error of the file ends only the file."""
        with self._lock:
            self._buffer.add(records)
            if self._file is not None:
                self._write(records)
        return ""

    def _write(self, records: Sequence[Record]) -> None:
        assert self._file is not None
        try:
            full = self._file.add(records)
        except CaptureError as error:
            self._close_file(str(error))
            return
        if full:
            self._close_file(f"it reached {full}")

    def _close_file(self, why: str) -> None:
        """Complete the file; the lock is held."""
        file, self._file = self._file, None
        if file is None or file.path is None:
            return
        file.close()
        name = display_path(file.path)
        self._notice = f"Wrote {file.packets:,} packets to {name}, {size_of(file.written)}"
        self._notice += f": {why}" if why else ""

    @property
    def state(self) -> CaptureState:
        progress, (first, last) = self._capture.progress, self._buffer.span
        file, path = self._file, self._file.path if self._file else None
        text = f"{display_path(path)}, {size_of(file.written)}" if file and path else ""
        return CaptureState(
            first,
            last,
            progress.dropped,
            progress.seconds,
            progress.ended,
            progress.error,
            text,
            self._notice,
        )

    def lines(self, first: int, last: int) -> list[PacketLine]:
        return [self._maker.line(block) for _, block in self._buffer.records(first, last)]

    def set_filter(self, text: str) -> None:
        with _command_errors():
            self._capture.set_filter(text)

    def save(self, path: Path) -> None:
        with _command_errors(), self._lock:
            self._file = self._capture.new_file(path)
            self._write(self._buffer.records())

    def end_file(self) -> None:
        with self._lock:
            self._close_file("")

    def stop(self) -> None:
        self._capture.stop("it was stopped")

    def _ended(self) -> None:
        """Complete the file and close the sockets, at the end of the thread."""
        self.end_file()
        self._capture.close()
        self._kernel.close()
