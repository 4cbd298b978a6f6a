"""Open the dashboard on this host, a file, or the demo lab (or its recording)."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.text import failure_sentence, safe
from core.tools import python_command, python_environment
from tui.command import CommandError, is_recording, load_with_fast_flows, require_terminal

if TYPE_CHECKING:
    from core.lab import LabError, LabSettings
    from core.model import FastFlows, GuardCounters
    from core.watch.drops import DropReader
    from tui.cli.fastpath_session import FastPathSession
    from tui.services import CaptureService, ChangeService, LabFaultService, LabHosts
    from tui.sources import Source

RECORDING = Path(__file__).parents[1] / "demo.vnetrec"  # `make demo-recording` writes it

_CHANGES = 15.0  # seconds between the lab's changes, so that the events view has something to show


def run(options: argparse.Namespace) -> int:
    """Open the dashboard or the demo; returns the exit code. Raises CommandError."""
    return _demo(options) if options.command == "demo" else _dashboard(options)


def _demo(options: argparse.Namespace) -> int:
    if getattr(options, "list_faults", False) or "list" in options.faults:
        return _list_faults()
    several = getattr(options, "hosts", 1) > 1
    if several and options.faults:
        raise CommandError(
            "can't inject faults into several hosts: they are made for the single host. "
            "Try: vnet-tui demo --fault NAME"
        )
    settings = _settings(options)
    words = options.run[1:] if options.run[:1] == ["--"] else options.run
    if words in ([], ["vnet-tui"]) and not several:
        return _open_lab(options.ascii, options.write, settings)
    if (words := words or ["vnet-tui"])[0] == "vnet-tui":
        flags = [f"--{name}" for name in ("ascii", "write") if getattr(options, name)]
        words = ["vnet-tui", *flags, *words[1:]]
    elif shutil.which(words[0]) is None:
        raise CommandError(f"can't run {words[0]!r} in the demo lab: there is no such command")
    if several:
        from tui.cli.lab_hosts import run_on_hosts

        return run_on_hosts(options.hosts, settings.traffic, words)
    return _run_command(words, settings)


def _settings(options: argparse.Namespace) -> LabSettings:
    """Return the settings of the lab that the options ask for; raises CommandError."""
    from core.lab import LabSettings
    from core.lab.faults import DEMO, NONE, UnknownFault, split_names

    traffic = not getattr(options, "no_traffic", False)
    try:
        names = split_names(getattr(options, "faults", ()))
    except UnknownFault as error:
        what = f"can't inject the fault {safe(error.name)}"
        raise CommandError(failure_sentence(what, error.reason, error.try_)) from None
    return LabSettings(
        traffic=traffic,
        changes=_CHANGES if traffic else 0.0,
        healthy=bool(names) and DEMO not in names,
        faults=tuple(name for name in names if name not in (NONE, DEMO)),
    )


def _list_faults() -> int:
    """Print every fault: its name and what is wrong."""
    from core.lab.faults import DEMO, FAULTS, NONE

    width = max(map(len, FAULTS)) + 2
    for name, fault in FAULTS.items():
        print(f"{name:{width}}{fault.sentence}")
    print(f"{NONE:{width}}No fault: a healthy lab")
    print(f"{DEMO:{width}}The faults of the plain demo")
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    if options.write and options.read_only:
        raise CommandError("can't open the dashboard: --write and --read-only exclude each other")
    if options.source:
        return _file_dashboard(options)
    require_terminal()
    from tui.app import run
    from tui.services import Services

    fast = DashboardFastPath()
    if options.read_only:
        return run(_live_source(fast), options.ascii, Services(capture=_capture_service))

    def open_demo() -> int:
        """Open the demo, and this host again when the person has left it."""
        return _open_lab(options.ascii, options.write, _settings(options)) or _dashboard(options)

    services = Services(
        _change_service, fast.fast_path_service, _capture_service, _lab_faults, _lab_hosts()
    )  # fmt: skip
    return run(_live_source(fast), options.ascii, services, options.write, open_demo)


class DashboardFastPath:
    """The fast path of one dashboard, imported after the first paint, when first used.

    It can be used from several threads. The fast path that it turns on ends with the dashboard.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: FastPathSession | None = None

    def fast_path_service(self) -> FastPathSession:
        """Return the fast path's session."""
        from tui.cli.fastpath_session import FastPathSession

        with self._lock:
            if self._session is None:
                self._session = FastPathSession(tied=True)
            return self._session

    def flows(self) -> FastFlows:
        """Return the counters of each flow of the fast path."""
        return self.fast_path_service().read_flows()


def _file_dashboard(options: argparse.Namespace) -> int:
    """Run the dashboard on a file; open the file before the terminal is needed."""
    if options.write:
        raise CommandError(
            "can't open a file with --write: only this host can be changed. Try: the same without --write"
        )
    source = _file_source(options.source)
    require_terminal()
    from tui.app import run

    return run(source, options.ascii)


def _change_service() -> ChangeService:
    from tui.cli.session import ChangeSession

    return ChangeSession()


def _lab_faults() -> LabFaultService:
    from tui.cli.lab_faults import LabFaults

    return LabFaults()


def _lab_hosts() -> LabHosts | None:
    from tui.services import LAB_HOSTS

    if LAB_HOSTS not in os.environ:
        return None
    from tui.cli.lab_hosts import given_hosts

    return given_hosts(os.environ.pop(LAB_HOSTS))


def _capture_service() -> CaptureService:
    from tui.cli.capture_session import CaptureSession

    return CaptureSession()


def _file_source(path: str) -> Source:
    from tui.cli.record import open_recording
    from tui.sources import FileSource

    if is_recording(Path(path)):
        return open_recording(Path(path))
    snapshot, fast = load_with_fast_flows(Path(path))
    return FileSource(snapshot, Path(path).name, fast)


def _live_source(fast: DashboardFastPath) -> Source:
    from tui.sources import LiveSource

    return LiveSource(fast.flows, open_drops, read_guards)


def read_guards() -> Sequence[GuardCounters]:
    """Return the counters of storm guards; it imports bpf only if there are any.

    Raises OSError.
    """
    from core.collect.storm_guard import attached_guards

    guards = attached_guards()
    if not guards:
        return ()
    from bpf.storm_guard import read_counters

    return read_counters(guards)


def open_drops() -> DropReader:
    """Begin to count dropped packets, for which it imports bpf.

    Raises DropsUnavailable.
    """
    from bpf.drops import DropCounter

    return DropCounter()


def _open_lab(ascii_only: bool, write: bool, settings: LabSettings) -> int:
    """Open the dashboard on the lab, or else on its recording.

    Returns the exit code. Raises CommandError.
    """
    from core.lab import LabError, check_rights

    flags = ["--ascii"] * ascii_only + ["--write"] * write
    try:
        check_rights()
        require_terminal()  # checked before the lab is built
        return _run_in_lab(["vnet-tui", *flags], settings)
    except LabError as error:
        if settings.healthy or settings.faults:  # the recording shows the plain demo
            raise CommandError(str(error)) from None
        return _replay(error, ascii_only)


def _run_command(words: list[str], settings: LabSettings) -> int:
    """Run a command in the lab, where `vnet-tui` is this program.

    Returns its exit code. Raises CommandError if the lab can't be built.
    """
    from core.lab import LabError

    try:
        return _run_in_lab(words, settings)
    except LabError as error:
        raise CommandError(str(error)) from None


def _run_in_lab(words: list[str], settings: LabSettings) -> int:
    from core.lab import lab

    if words[0] == "vnet-tui":
        return lab.main(python_command("tui.cli", *words[1:]), settings, python_environment())
    return lab.main(words, settings)


def _replay(error: LabError, ascii_only: bool) -> int:
    """Replay the recording over and over, and say why it is not the lab itself."""
    from tui.app import run
    from tui.cli.record import open_recording

    try:
        require_terminal()
        source = open_recording(RECORDING)
    except CommandError:
        print(f"vnet-tui: {error}", file=sys.stderr)
        raise
    source.loop_with_banner("Recorded demo", _sentence(error))
    return run(source, ascii_only)


def _sentence(error: LabError) -> str:
    """Return why the lab itself is not shown, as a sentence for the screen."""
    return f"Can't build the lab: {error.reason}." + (f" Try: {error.try_}" if error.try_ else "")
