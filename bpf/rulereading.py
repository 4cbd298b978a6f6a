"""Reads the rules in a thread: tens of thousands take seconds, in which the lease must be renewed. Where only
some chains changed, only these are read: a change of one must not take longer than it is until the next."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

from bpf import obstacles
from bpf.judging import ChainName, Links, RuleSet
from bpf.obstacles import Obstacles
from bpf.ruleset import RuleCache, read_rules, reread
from bpf.rulewatch import Heard


class RuleReading:
    """One reading at a time; its descriptor is readable when a reading is done. `took` are the seconds that
    the last one took."""

    def __init__(self) -> None:
        self._cache = RuleCache()
        self._rules: RuleSet | None = None  # as read last
        self._changed: set[ChainName] | None = None  # since then; None: anything may have
        self._done = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._found: Obstacles | Exception = Obstacles()
        self._again = False
        self._links: Links | None = None
        self.took = 0.0

    def fileno(self) -> int:
        """What to wait for."""
        return self._done[0]

    @property
    def is_busy(self) -> bool:
        """Whether they are being read, or were and wait to be taken."""
        return self._thread is not None

    @property
    def is_short(self) -> bool:
        """Whether the next reading is of some chains alone."""
        return self._changed is not None

    def note(self, heard: Heard) -> None:
        """That changed. Rules are understood together with the verdicts in maps."""
        if heard.rules or heard.verdicts:
            self.forget()
        elif self._changed is not None:
            self._changed |= heard.chains

    def forget(self) -> None:
        """Anything may have changed."""
        self._changed = None

    def now(self, links: Links | None) -> Obstacles:
        """Read them all, and wait for it."""
        self._changed = set()
        return obstacles.find(links, lambda: self._read_changed(None))

    def start(self, links: Links | None) -> None:
        """Read them from now on, for packets on these links; where they are being read already, once more
        after that."""
        self._links = links
        if self._thread is not None:
            self._again = True
            return
        changed, self._changed = self._changed, set()
        self._thread = threading.Thread(target=self._read, args=(changed,), daemon=True)
        self._thread.start()

    def _read(self, changed: set[ChainName] | None) -> None:
        began = time.thread_time()
        try:
            self._found = obstacles.find(self._links, lambda: self._read_changed(changed))
        except Exception as error:
            self._found = error
        self.took = time.thread_time() - began
        with suppress(OSError):
            os.write(self._done[1], b"\0")

    def _read_changed(self, changed: set[ChainName] | None) -> RuleSet:
        """What could not be read is read whole the next time."""
        before, self._rules = self._rules, None
        if before is None or changed is None:
            self._rules = read_rules(cache=self._cache)
        else:
            self._rules = reread(before, changed, self._cache)
        return self._rules

    def take(self) -> Obstacles | None:
        """What was found; None where they are read once more. Raises what the thread came upon."""
        os.read(self._done[0], 64)
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._again:
            self._again = False
            self.start(self._links)
            return None
        if isinstance(self._found, Exception):
            raise self._found
        return self._found
