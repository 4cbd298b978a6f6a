"""The agent's fast path: kept up for good, started again when its processes end, and its numbers for
metrics."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from bpf import client
from core.metrics.fastpath import FastPathNumbers
from core.model import FastPath
from core.model.fastpath import FAST
from core.text import safe
from tui.fastpath.standing import read_fast_path

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before the next try
_LASTING = 60.0  # seconds after which a fast path that ran is not one that fails to start
_END_SECONDS = 20.0


class Kept:
    """Accelerates `targets` on a thread of its own until it is closed; `say` hears of each start and end."""

    def __init__(self, targets: Sequence[str], say: Callable[[str], None], strict: bool = False) -> None:
        self._targets, self._say, self._strict = list(targets), say, strict
        self._stop = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._keep, name="keep-fast-path")

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Give everything back, and wait until that is done."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
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
            self._tell(f"no process can be started: {error.strerror or error}")
            return
        if not started.told.get("ok"):
            words = [str(started.told[key]) for key in ("what", "why") if started.told.get(key)]
            self._tell(": ".join(words))
        else:
            self._tell(f"accelerating {', '.join(self._targets)}")
            self._wait(started.keeper)
        _let_go(started.keeper)

    def _wait(self, keeper: subprocess.Popen[bytes]) -> None:
        while not self._stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                keeper.wait(0.5)
                self._tell("its process ended; it is started again")
                return

    def _tell(self, words: str) -> None:
        """Say it, unless it was the last thing said."""
        if words != self._said:
            self._said = words
            self._say(f"fast path: {safe(words)}")


def _let_go(keeper: subprocess.Popen[bytes]) -> None:
    """The keeper ends with its standard input, once all is given back."""
    if keeper.stdin:
        with suppress(OSError):
            keeper.stdin.close()
    try:
        keeper.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        keeper.terminate()


class Numbers:
    """The fast path's numbers at each scrape. Its counters go with their links: what these had is kept in the
    totals."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}
        self._totals: dict[str, int] = {}

    def __call__(self) -> FastPathNumbers | None:
        """What it counts now; None where it is off."""
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
        """Add what came since the last time; a counter that is lower than it was has begun again."""
        now = {(one.ifindex, name): count for one in fast.ports for name, count in one.verdicts.items()}
        for (ifindex, name), count in now.items():
            before = self._last.get((ifindex, name), 0)
            self._totals[name] = self._totals.get(name, 0) + (count - before if count >= before else count)
        self._last = now
