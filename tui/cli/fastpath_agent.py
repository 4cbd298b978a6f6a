"""Run the fast path for the agent; read its flows and state; clean up after it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bpf import client, runfile
from bpf.layout import VERDICTS
from bpf.rpc import NotRunning, ask, refusal_text
from bpf.runfile import clean_up
from core.model import FastFlows, FastPath, FastPort
from core.model.fastpath import FAST
from core.text import safe
from tui.command import CommandError

if TYPE_CHECKING:
    from bpf.client import FastFlowReader
    from core.metrics import FastPathNumbers


RECOVERY = "cleans up after a killed fast path: its settings, and the marks of its connections"


def needs_recovery() -> bool:
    """Return whether a killed fast path left something that no process cleans up."""
    if runfile.saved_state() is None:
        return False
    try:
        lock = runfile.lock()
    except (runfile.AlreadyRunning, OSError):
        return False
    _unlock(lock)
    return True


def recover_settings() -> str:
    """Put it right, and say so; "" where nothing was left. Raises CommandError."""
    if runfile.saved_state() is None:
        return ""
    try:
        lock = runfile.lock()
    except runfile.AlreadyRunning:
        return ""  # it runs
    except OSError as error:
        raise CommandError(f"can't clean up after the fast path: {error.strerror}") from error
    try:
        handed = clean_up()
    except OSError as error:
        raise CommandError(f"can't clean up after the fast path: {error.strerror}") from error
    finally:
        _unlock(lock)
    return f"cleaned up after a killed fast path: settings, and the marks of {handed or 0} connections"


def _unlock(lock: int) -> None:
    runfile.unlock()
    os.close(lock)


WORDS = {verdict.name: verdict.words for verdict in VERDICTS}
SHORT_TIMEOUT = 3.0  # seconds that a reader waits for an answer


def read_fast_path(measure: bool = False, flows: bool = False, patience: float = SHORT_TIMEOUT) -> FastPath:
    """Read the state of the fast path of this network namespace.

    On demand it also counts flows and measures the cost of a packet. Commands wait longer for an answer than
    the dashboard.
    """
    try:
        answer = ask({"do": "status", "measure": measure, "flows": flows}, timeout=patience)
    except NotRunning:
        targets, why = runfile.failed_start()
        reasons = (why,) if why else ()
        return FastPath(reasons=reasons, words=WORDS, agent_targets=targets, left=needs_recovery())
    except PermissionError:
        return FastPath("hidden", words=WORDS)
    except (OSError, ValueError):
        return FastPath("silent", words=WORDS)
    return fast_path_of(answer)


def fast_path_of(answer: dict[str, Any]) -> FastPath:
    """Return the daemon's answer (docs/fast-path.md) as a value."""
    ports = [
        FastPort(one["name"], one["ifindex"], one["role"], one["verdicts"])
        for one in sorted(answer["ports"], key=lambda one: (one["role"], one["name"]))
    ]
    return FastPath(
        state=answer["state"],
        targets=tuple(answer["targets"]),
        unknown=tuple(answer["unknown"]),
        bridges=tuple(answer["bridges"]),
        reasons=tuple(answer["reasons"]),
        refused=answer["refused"],
        tunnels=answer.get("tunnels", {}),
        captured=tuple(answer["captured"]),
        ports=tuple(ports),
        verdicts=answer["verdicts"],
        words=WORDS,
        ns_per_packet=answer.get("ns_per_packet"),
        flows=answer.get("flows"),
        flows_limit=answer["flows_limit"],
        generation=answer["generation"],
        mark_mask=answer["mark_mask"],
        strict=bool(answer.get("strict")),
        tied=bool(answer.get("tied")),
        pid=answer["pid"],
    )


class SharedFlows:
    """Read flows when called, from any thread; keep their maps open between calls.

    The maps are closed by `close`, or when nothing is accelerated any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader: FastFlowReader | None = None

    def __call__(self) -> FastFlows:
        """Return the accelerated flows."""
        from bpf.client import FastFlowReader
        from bpf.runfile import netns_inode

        with self._lock, suppress(OSError):
            if self._reader is None:
                self._reader = FastFlowReader()
            return self._reader.read()
        return FastFlows(netns_inode(), taken_at=time.time())  # it ended while it was read

    def close(self) -> None:
        """Let go of the maps."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()


_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before the next try
_LASTING = 60.0  # seconds after which a fast path has started successfully
_END_SECONDS = 20.0


class FastPathRunner:
    """Accelerate `targets` in a thread until closed; restart what ends.

    `say` is called with a sentence at each start and end.
    """

    def __init__(self, targets: Sequence[str], say: Callable[[str], None], strict: bool = False) -> None:
        self._targets, self._log, self._strict = list(targets), say, strict
        self._stop = threading.Event()
        self._last_report = ""
        self._failed = runfile.FailedStart()
        self._thread = threading.Thread(target=self._keep_running, name="keep-fast-path")

    def start(self) -> None:
        """Begin; return at once."""
        self._thread.start()

    def close(self) -> None:
        """Give everything back, and wait until that is done."""
        self._stop.set()
        self._thread.join()
        self._failed.clear()

    def _keep_running(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            began = time.monotonic()
            self._run_once()
            if time.monotonic() - began > _LASTING:
                pause = _FIRST_PAUSE
            if self._stop.wait(pause):
                return
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _run_once(self) -> None:
        """Start it, and wait until it ends, by itself or because this is closed."""
        try:
            started = client.start(self._targets, tied=True, strict=self._strict)
        except OSError as error:
            self._fail(f"can't start its process: {error.strerror or error}")
            return
        if not started.answer.get("ok"):
            self._fail(refusal_text(started.answer))
        else:
            self._failed.clear()
            self._report(f"accelerating {', '.join(self._targets)}")
            self._wait(started.supervisor)
        _close_supervisor(started.supervisor)

    def _wait(self, supervisor: subprocess.Popen[bytes]) -> None:
        while not self._stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                supervisor.wait(0.5)
                self._report("its process ended; it is started again")
                return

    def _fail(self, reason: str) -> None:
        """Print why it can't start, and keep it for `doctor` until it has started."""
        self._failed.write(self._targets, reason)
        self._report(reason)

    def _report(self, words: str) -> None:
        """Print it, unless it was the last text printed."""
        if words != self._last_report:
            self._last_report = words
            self._log(f"fast path: {safe(words)}")


def _close_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    """Close the supervisor's standard input; it cleans up and ends."""
    if supervisor.stdin:
        with suppress(OSError):
            supervisor.stdin.close()
    try:
        supervisor.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        supervisor.terminate()


class FastPathMetrics:
    """Read the fast path's metrics at each scrape.

    Counters disappear with their links; the totals keep their last values.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}
        self._totals: dict[str, int] = {}

    def __call__(self) -> FastPathNumbers | None:
        """Return current metrics, None while the fast path is off."""
        from core.metrics import FastPathNumbers

        fast = read_fast_path(flows=True)
        if not fast.is_running:
            return None
        self._add(fast)
        left = {name.lower(): count for name, count in self._totals.items() if name != FAST}
        return FastPathNumbers(
            flows=fast.flows, flows_limit=fast.flows_limit, links=len(fast.ports),
            packets=self._totals.get(FAST, 0), left=left, forwarding=fast.state == "on",
            by_link={one.name: {name.lower(): n for name, n in one.verdicts.items()} for one in fast.ports},
        )  # fmt: skip

    def _add(self, fast: FastPath) -> None:
        """Add what was counted since the last time; a lower counter has restarted."""
        now = {(one.ifindex, name): count for one in fast.ports for name, count in one.verdicts.items()}
        for (ifindex, name), count in now.items():
            before = self._last.get((ifindex, name), 0)
            self._totals[name] = self._totals.get(name, 0) + (count - before if count >= before else count)
        self._last = now
