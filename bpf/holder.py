"""The process that holds the fast path: program, links, table and maps end with it; it keeps the maps true and the lease alive.

`python -m bpf.holder TARGET...` is started by bpf/keeper.py, which puts everything right when this process is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from bpf import control, entries, loader, marks, ports, restore, runtime, syscall, sysctls
from bpf.attachments import Attachments
from bpf.control import Answer, Server
from bpf.scene import Kernel, Scene
from bpf.status import status
from bpf.tables import Tables
from core.collect.events import EventSocket

BEAT = 0.25
SETTLE = 0.01
_PR_SET_PDEATHSIG = 1


class Holder:
    """Everything that is held, and what is done when."""

    def __init__(self, targets: list[str]) -> None:
        self.targets = targets
        self.loaded = loader.load()
        self.tables = Tables(self.loaded)
        self.attachments = Attachments(self.loaded.program)
        self.kernel = Kernel()
        self.events = EventSocket()
        self.chain = marks.MarkChain()
        self.server = Server(runtime.socket_path(runtime.here()))
        self.refused: dict[str, str] = {}
        self.reasons: list[str] = []
        self.generation = 0
        self.ending = False
        self._look_at: float | None = None

    def begin(self) -> None:
        """Turn it on."""
        sysctls.write(sysctls.LIBERAL, "1")
        entries.hand_back(marks.field_mask())
        self.look()
        self.next_generation()

    def next_generation(self) -> None:
        """Every flow must pass the rules once more."""
        following = self.generation % marks.GENERATIONS + 1
        entries.clear_generation(following, marks.SHIFT)
        self.chain.write(following)
        self.generation = following
        self.tables.config["generation"] = following
        self.tables.ask_again()

    def pause(self) -> None:
        """All to the kernel, at once."""
        self.tables.config["generation"] = 0
        self.tables.ask_again()

    def look(self) -> None:
        """Read what is, and have the maps and links accordingly."""
        links = self.kernel.links()
        bridges = self._bridges(links)
        ends = self.kernel.ends(ports.wanted_ends(links, bridges))
        ingress, egress = self.kernel.filtered(links)
        foreign = self.attachments.foreign(links)
        v4, v6 = sysctls.calls_iptables()
        found = ports.contents(Scene(links, ends, ingress | foreign, egress, v4, v6), bridges)
        self.tables.fill(found)
        failed = self.attachments.keep(found.ports)
        names = {ifindex: found.ports[ifindex].name for ifindex in failed}
        self.refused = found.refused | {names[ifindex]: why for ifindex, why in failed.items()}
        self.tables.ask_again()

    def _bridges(self, links: dict[int, Any]) -> set[int]:
        everything = "all" in self.targets
        return {
            link.ifindex
            for link in links.values()
            if link.kind == "bridge" and (everything or link.name in self.targets)
        }

    def run(self) -> None:
        """Until the end."""
        selector = selectors.DefaultSelector()
        for descriptor in self.events.filenos():
            selector.register(descriptor, selectors.EVENT_READ, self._hear)
        selector.register(self.server, selectors.EVENT_READ, self._serve)
        beat_at = time.monotonic()
        while not self.ending:
            now = time.monotonic()
            if self._look_at is not None and now >= self._look_at:
                self._look_at = None
                self.look()
            if now >= beat_at:
                self.tables.beat()
                beat_at = now + BEAT
            until = min(beat_at, self._look_at or beat_at)
            for key, _ in selector.select(max(0.0, until - time.monotonic())):
                key.data()

    def _hear(self) -> None:
        parts = {part for _, part in self.events.read()}
        if parts & {"links", "routes", "everything"} and self._look_at is None:
            self.tables.ask_again()
            self._look_at = time.monotonic() + SETTLE

    def _serve(self) -> None:
        self.server.serve(self._answer)

    def _answer(self, request: dict[str, Any]) -> Answer:
        match request.get("do"):
            case "status":
                return status(self)
            case "targets":
                self.targets = [str(each) for each in request.get("targets", ())]
                self.look()
                return {"ok": True}
            case "reload":
                self.attachments.replace(loader.reload(self.loaded))
                return {"ok": True}
            case "off":
                self.ending = True
                return {"ok": True}
        return {"ok": False, "what": "the request was not understood", "why": "", "try": ""}

    def end(self) -> None:
        """Orderly: nothing is forwarded from here on, then all goes."""
        self.pause()
        self.attachments.close()
        self.chain.close()
        restore.restore()
        self.server.close()


def main(targets: list[str]) -> int:
    """Hold until told otherwise; what happened at the start is one line of JSON on standard output."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        holder = Holder(targets)
        signal.signal(signal.SIGTERM, lambda number, frame: _end(holder, number, frame))
        signal.signal(signal.SIGINT, lambda number, frame: _end(holder, number, frame))
        holder.begin()
    except (OSError, loader.CannotCompile, syscall.Rejected) as error:
        _tell({"ok": False, "what": "the fast path cannot be turned on", "why": str(error), "try": ""})
        return 1
    holder.tables.beat()
    _tell({"ok": True, "pid": os.getpid(), "socket": str(runtime.socket_path(runtime.here()))})
    try:
        holder.run()
    finally:
        holder.end()
    return 0


def _end(holder: Holder, number: int, frame: FrameType | None) -> None:
    holder.ending = True


def _tell(answer: Answer) -> None:
    with suppress(OSError):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
