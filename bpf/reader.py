"""Reads the fast path's flows for those who show them: straight from its maps, as columns."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from bpf import control, layout, runtime, syscall
from bpf.clock import Clock
from core.model import FastFlows
from core.model.fastflows import FASTFLOW_DTYPE

Column = np.ndarray[Any, Any]

_PATIENCE = 1.0  # seconds in which a holder says which maps are its own
_SAME_BRIDGE, _ROUTED, _TRANSLATED = 1, 2, 3
_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff", np.uint8)


class FlowReader:
    """The flows of this process's network namespace; `read` may be called from any one thread."""

    def __init__(self) -> None:
        self._inode = runtime.here()
        self._holder = 0
        self._maps: dict[str, int] = {}
        self._clock: Clock | None = None

    def read(self) -> FastFlows:
        """All flows; none where nothing is accelerated."""
        found = self._find()
        now = time.time()
        if not found:
            return FastFlows(self._inode, taken_at=now)
        entries = np.concatenate([self._family(4), self._family(6)])
        entries.flags.writeable = False
        return FastFlows(self._inode, entries, now)

    def _find(self) -> bool:
        """Have the maps of the holder that runs now; whether there is one. One that is too busy to answer
        goes on counting in the maps that are known."""
        try:
            answer = control.ask({"do": "maps"}, self._inode, _PATIENCE)
        except control.NotRunning:
            self.close()
            return False
        except OSError:
            return bool(self._maps)
        if not answer.get("ok"):
            return False
        if answer["pid"] != self._holder or not self._maps:
            self.close()
            self._maps = {name: syscall.map_by_id(answer["maps"][name]) for name in ("flows4", "flows6")}
            self._clock = Clock()
            self._holder = answer["pid"]
        return True

    def _family(self, family: int) -> Column:
        key = layout.KEY4 if family == 4 else layout.KEY6
        there = self._maps[f"flows{family}"]
        keys, flows = syscall.read_all(there, key, layout.FLOW, syscall.room_of(there))
        carried = flows["packets"] > 0
        assert self._clock is not None
        return fast_flows(keys[carried], flows[carried], family, self._clock.now(), self._clock.hz)

    def close(self) -> None:
        """Let go of the maps: they would live on as long as we hold them."""
        for descriptor in self._maps.values():
            os.close(descriptor)
        self._maps = {}
        if self._clock is not None:
            self._clock.close()
            self._clock = None


def fast_flows(keys: Column, flows: Column, family: int, now: int, hz: int) -> Column:
    """The maps' keys and values (bpf/layout.py) as FASTFLOW_DTYPE; `now` are jiffies, of which `hz` make a
    second."""
    found = np.zeros(len(keys), FASTFLOW_DTYPE)
    found["family"] = family
    for name in ("l4_proto", "sport", "dport"):
        found[name] = keys[name]
    for name in ("in_ifindex", "out_ifindex", "packets", "bytes", "new_sport", "new_dport"):
        found[name] = flows[name]
    for name in ("src", "dst"):
        found[name] = _sixteen(keys[name], family)
        found[f"new_{name}"] = _sixteen(flows[f"new_{name}"], family)
    found["live"] = flows["action"] >= layout.ACTION_PEER
    rewrite = flows["rewrite"]
    translated = rewrite & (layout.REWRITE_ADDRESS | layout.REWRITE_PORT) > 0
    routed = rewrite & layout.REWRITE_L3 > 0
    found["path"] = np.where(translated, _TRANSLATED, np.where(routed, _ROUTED, _SAME_BRIDGE))
    for name in ("first_seen", "last_seen"):
        ago = (now - flows[name].astype(np.int64)) * 1_000_000_000 // hz
        found[name] = time.time_ns() - ago
    return found


def _sixteen(octets: Column, family: int) -> Column:
    if family == 6:
        return octets[:, :16]
    mapped = np.empty((len(octets), 16), np.uint8)
    mapped[:, :12], mapped[:, 12:] = _MAPPED, octets[:, :4]
    return mapped
