"""Start the fast path, and read its flows straight from its maps, as columns."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpf import layout, syscall
from bpf.build import compiled_program
from bpf.clock import Clock, jiffies_ago
from bpf.rpc import Answer, NotRunning, ask, refusal
from bpf.runfile import netns_inode
from core.model import FastFlows
from core.model.fastpath import FASTFLOW_DTYPE, no_fast_flows
from core.tools import python_command, python_environment

Column = np.ndarray[Any, Any]

_TIMEOUT = 1.0  # seconds to wait for the daemon's map ids
_SAME_BRIDGE, _ROUTED, _TRANSLATED = 1, 2, 3
_BLOCK = 4096  # rows that the processor's cache holds while column after column is filled


class FastFlowReader:
    """Read the flows of this process's network namespace, from one thread at a time."""

    def __init__(self) -> None:
        self._inode = netns_inode()
        self._daemon = 0
        self._maps: dict[str, int] = {}
        self._clock: Clock | None = None

    def read(self) -> FastFlows:
        """Return all flows; none if nothing is accelerated."""
        found = self._find()
        now = time.time()
        if not found:
            return FastFlows(self._inode, taken_at=now)
        parts = [part for part in (self._family(4), self._family(6)) if len(part)]
        entries = parts[0] if len(parts) == 1 else np.concatenate([no_fast_flows(), *parts])
        entries.flags.writeable = False
        return FastFlows(self._inode, entries, now)

    def _find(self) -> bool:
        """Open the maps of the daemon that runs now; return whether there is one.

        If it is too busy to answer, the maps that are open already stay valid.
        """
        try:
            answer = ask({"do": "maps"}, self._inode, _TIMEOUT)
        except NotRunning:
            self.close()
            return False
        except OSError:
            return bool(self._maps)
        if not answer.get("ok"):
            return False
        if answer["pid"] != self._daemon or not self._maps:
            self.close()
            self._maps = {name: syscall.map_by_id(answer["maps"][name]) for name in ("flows4", "flows6")}
            self._clock = Clock()
            self._daemon = answer["pid"]
        return True

    def _family(self, family: int) -> Column:
        key = layout.KEY4 if family == 4 else layout.KEY6
        map_fd = self._maps[f"flows{family}"]
        keys, flows = syscall.read_all(map_fd, key, layout.FLOW, syscall.max_entries(map_fd))
        carried = flows["packets"] > 0
        if not carried.all():
            keys, flows = keys[carried], flows[carried]
        assert self._clock is not None
        return fast_flows(keys, flows, family, self._clock.now(), self._clock.hz)

    def close(self) -> None:
        """Close the maps: they exist as long as a process has them open."""
        for descriptor in self._maps.values():
            os.close(descriptor)
        self._maps = {}
        if self._clock is not None:
            self._clock.close()
            self._clock = None


def fast_flows(keys: Column, flows: Column, family: int, now: int, hz: int) -> Column:
    """Convert map keys and values (bpf/layout.py) to FASTFLOW_DTYPE.

    `now` in jiffies, of which there are `hz` per second.
    """
    found = np.zeros(len(keys), FASTFLOW_DTYPE)
    found["family"] = family
    at = time.time_ns()
    for start in range(0, len(keys), _BLOCK):
        block = slice(start, start + _BLOCK)
        _fill(found[block], keys[block], flows[block])
        for name in ("first_seen", "last_seen"):
            ago = jiffies_ago(flows[name][block], now).astype(np.int64) * 1_000_000_000 // hz
            found[name][block] = at - ago
    return found


def _fill(found: Column, keys: Column, flows: Column) -> None:
    """Fill all columns of a few rows except the family and times."""
    for name in ("l4_proto", "sport", "dport"):
        found[name] = keys[name]
    for name in ("in_ifindex", "out_ifindex", "packets", "bytes", "new_sport", "new_dport"):
        found[name] = flows[name]
    for rows, names in ((keys, ("src", "dst")), (flows, ("new_src", "new_dst"))):
        for name in names:
            _fill_address(found, rows, name)
    found["live"] = flows["action"] >= layout.ACTION_PEER
    rewrite = flows["rewrite"]
    translated = rewrite & (layout.REWRITE_ADDRESS | layout.REWRITE_PORT) > 0
    routed = rewrite & layout.REWRITE_L3 > 0
    found["path"] = np.where(translated, _TRANSLATED, np.where(routed, _ROUTED, _SAME_BRIDGE))


def _fill_address(found: Column, rows: Column, name: str) -> None:
    """Copy an address column of the same name by words.

    Copying single bytes takes several times as long.
    """
    to, of = (int(each.dtype.fields[name][1]) for each in (found, rows))
    if found["family"][0] == 6:
        for half in (0, 8):
            found.getfield("u8", to + half)[:] = rows.getfield("u8", of + half)
    else:
        found.getfield(">u4", to + 8)[:] = 0xFFFF  # IPv4-mapped
        found.getfield("u4", to + 12)[:] = rows.getfield("u4", of)


@dataclass(frozen=True, slots=True)
class StartResult:
    """Describe the supervisor that was started and its answer.

    `answer` has `ok`, or `what`, `why` and `try`. A tied fast path ends when `supervisor.stdin` is closed
    or this process ends.
    """

    supervisor: subprocess.Popen[bytes]
    answer: dict[str, Any]


def start(targets: list[str], tied: bool, strict: bool = False) -> StartResult:
    """Accelerate targets in this network namespace; return when it is on or refused.

    Compiling for a new kernel takes about a second. `strict` as in bpf/generation_chain.py. Raises OSError
    if the process can't be started.
    """
    options = [name for name, on in (("--tied", tied), ("--strict", strict)) if on]
    supervisor = subprocess.Popen(
        python_command("bpf.supervisor", *options, "--", *targets),
        stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=python_environment(),
        cwd="/",
        start_new_session=True,
    )
    assert supervisor.stdout is not None
    with supervisor.stdout as output:
        line = output.readline()
    try:
        answer = dict(json.loads(line))
    except ValueError:
        answer = refusal("can't turn on the fast path", "its process ended")
    return StartResult(supervisor, answer)


def reload() -> Answer:
    """Replace the daemon's program by one of the current source.

    It is compiled here, as the daemon must not block. Raises build.CompileError, rpc.NotRunning.
    """
    compiled_program()
    return ask({"do": "reload"})
