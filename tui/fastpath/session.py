"""The fast path as the dashboard and the commands run it: status, preview, on, off; an own one is tied to
this process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bpf import build, rpc
from bpf.client import start
from bpf.runfile import DIRECTORY, child_pids, clean_up, lock_owner, netns_inode, unlock
from core.collect.snapshot import read_snapshot
from core.model import FastFlows, FastPath, Requirement
from core.model.fastpath import ALL
from core.text import safe
from core.topology import Topology
from tui.changer import Preview
from tui.command import CommandError
from tui.fastpath.keeping import SOON, SharedFlows, read_fast_path
from tui.present.fast_targets import Choice
from tui.present.fastpath import ENDS_WITH

if TYPE_CHECKING:
    pass


_PARTS = {"links", "containers"}
_END_SECONDS = 60.0  # usually one; a slow machine takes its time
_PUT_RIGHT = 10.0  # seconds in which a keeper puts things right


class FastSession:
    """A tui.changer.Accelerator for this process's network namespace; `tied` has what it starts end with
    it."""

    def __init__(self, tied: bool) -> None:
        self.tied = tied
        self._lock = threading.Lock()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._flows = SharedFlows()

    def status(self, closely: bool = False) -> FastPath:
        found = read_fast_path(closely, closely, SOON if self.tied else rpc.TIMEOUT)
        if not found.is_running:
            self._flows.close()  # maps live as long as somebody holds them
        return found

    def read_flows(self) -> FastFlows:
        """What it counted, flow by flow; from any thread."""
        return self._flows()

    def requirements(self) -> tuple[Requirement, ...]:
        from bpf.requirements import read_host_features, requirements

        return requirements(read_host_features(whole=True))

    def look(self) -> Topology:
        return Topology(read_snapshot(_PARTS))

    def preview(
        self, choices: tuple[Choice, ...], on: bool, topology: Topology, strict: bool | None = None
    ) -> Preview:
        from tui.fastpath.preview import preview

        return preview(choices, on, topology, self.status(), self.tied, strict)

    def perform(self, preview: Preview, progress: Callable[[str], None]) -> str:
        with self._lock:
            if not preview.targets:
                return self._off(progress)
            if self.status().is_running:
                return self._retarget(preview.targets, preview.strict)
            return self._start(preview, progress)

    def _retarget(self, targets: Sequence[str], strict: bool) -> str:
        """Have the one that runs accelerate these."""
        ask({"do": "targets", "targets": list(targets), "strict": strict})
        found = self._settled()
        ends = f" It ends {ENDS_WITH}." if found.tied and not self.tied else ""
        return f"{how_it_is(found)}{ends}"

    def _settled(self) -> FastPath:
        """How it stands once the rules were read again, if that does not take too long."""
        deadline = time.monotonic() + SOON
        while (found := self.status()).state == "changing" and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _start(self, preview: Preview, progress: Callable[[str], None]) -> str:
        try:
            if not build.is_compiled():
                progress("Compiling the program for this kernel…")
                build.compiled_program()
            progress("Loading it…")
            started = start(list(preview.targets), self.tied, preview.strict)
        except build.CompileError as error:
            raise CommandError(f"the program cannot be compiled: {safe(str(error))}") from error
        except OSError as error:
            raise CommandError(f"no process can be started: {error.strerror or error}") from error
        if not started.answer.get("ok") and (running := self._started_by_another()):
            targets = tuple(dict.fromkeys((*running.targets, *preview.targets)))
            return self._retarget((ALL,) if ALL in targets else targets, preview.strict or running.strict)
        _good(started.answer)
        self._keeper = started.supervisor if self.tied else None
        return how_it_is(self.status())

    def _started_by_another(self) -> FastPath | None:
        """How the one stands that another process has begun to start meanwhile; None where there is none."""
        deadline = time.monotonic() + _END_SECONDS
        while lock_owner() and time.monotonic() < deadline:
            found = self.status()
            if found.is_running and found.state != "silent":
                return found
            time.sleep(0.02)
        return None

    def _off(self, progress: Callable[[str], None]) -> str:
        progress("Giving everything back…")
        with suppress(_NotRunning):
            ask({"do": "off"})
        wait_for_the_end()
        self._let_go(_END_SECONDS)
        return "The fast path is off: the kernel forwards everything."

    def end_silent(self) -> str:
        """Kill the process of a fast path that does not answer; its keeper puts right what it leaves, or we
        do."""
        keeper = lock_owner()
        _kill(*child_pids(keeper))
        deadline = time.monotonic() + _PUT_RIGHT
        while lock_owner() and time.monotonic() < deadline:
            time.sleep(0.02)
        if lock_owner():
            _kill(keeper)
            clean_up()
            unlock()
        return "The process was killed. The fast path is off: the kernel forwards everything."

    def _let_go(self, seconds: float) -> None:
        """The keeper ends what it keeps as soon as its standard input is closed."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            if keeper.stdin:
                with suppress(OSError):
                    keeper.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                keeper.wait(seconds)

    def close(self) -> None:
        """What was started here ends; it is not waited for."""
        self._flows.close()
        self._let_go(0.0)


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _NotRunning(CommandError):
    """Nothing is accelerated here."""


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the holder; raises CommandError where it does not do it, or there is none."""
    try:
        return _good(rpc.ask(request))
    except rpc.NotRunning:
        raise _NotRunning("nothing is accelerated here: vnet-tui accelerate NETWORK turns it on") from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise CommandError(
            f"the process of the fast path does not answer ({why}): vnet-tui fastpath status"
        ) from error


def _good(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, unless it is a refusal."""
    if answer.get("ok"):
        return answer
    words = ": ".join(safe(str(answer[key])) for key in ("what", "why") if answer.get(key))
    more = f"; try: {safe(str(answer['try']))}" if answer.get("try") else ""
    raise CommandError(f"{words or 'it was refused'}{more}")


def how_it_is(fast: FastPath) -> str:
    """The state in a sentence."""
    names = ", ".join(map(safe, fast.targets))
    paused = f" Paused: {'; '.join(map(safe, fast.reasons))}." if fast.state == "paused" else ""
    return f"Accelerated: {names}.{paused}"


def wait_for_the_end() -> None:
    """Until nobody accelerates here any more and all is put back, as long as that should take."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        if not any(DIRECTORY.glob(f"fastpath-{netns_inode()}.*")):
            return
        time.sleep(0.02)
    raise CommandError("the fast path is off, but not all is put back yet: vnet-tui fastpath status tells")


class FastForDashboard:
    """Hands out the session; what it turns on ends with the dashboard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: FastSession | None = None

    def accelerator(self) -> FastSession:
        """The session."""

        with self._lock:
            if self._session is None:
                self._session = FastSession(tied=True)
            return self._session

    def flows(self) -> FastFlows:
        """What the fast path counted, flow by flow."""
        return self.accelerator().read_flows()
