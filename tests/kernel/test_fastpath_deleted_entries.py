"""A connection's conntrack entry is deleted while the fast path forwards it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from bpf import layout, syscall
from bpf.clock import Clock
from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import talks_fast
from tests.support.fastpath import FastPath, Talk
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root


class MappedFlows:
    """Read the flows to and from a port from the maps."""

    def __init__(self, fast: FastPath, port: int) -> None:
        self._port = port
        self._maps = {name: syscall.map_by_id(fast.status()["maps"][name]) for name in ("config", "flows4")}
        self._clock = Clock()

    def close(self) -> None:
        """Close the maps."""
        self._clock.close()
        for each in self._maps.values():
            os.close(each)

    def asked_ago(self) -> tuple[int, int]:
        """Return the jiffies since conntrack was asked, per direction, sorted."""
        now = self._clock.now()
        ago = sorted((now - int(flow["checked"])) & 0xFFFFFFFF for flow in self._flows())
        return ago[0], ago[-1]

    def is_valid(self) -> bool:
        """Return whether both directions are still valid: nothing made them ask again."""
        flows, config = self._flows(), self._config()
        return bool(
            config["generation"]
            and (flows["epoch"] == config["epoch"]).all()
            and self._clock.now() <= config["deadline"]
            and self.asked_ago()[1] < config["recheck"]
        )

    def is_handed_back(self) -> bool:
        """Return whether the kernel forwards a direction from now on."""
        return bool((self._flows()["action"] < layout.ACTION_PEER).any())

    def _flows(self) -> np.ndarray:
        there = self._maps["flows4"]
        keys, flows = syscall.read_all(there, layout.KEY4, layout.FLOW, syscall.max_entries(there))
        found = flows[(keys["dport"] == self._port) | (keys["sport"] == self._port)]
        assert len(found) == 2, "both directions are known"
        return found

    def _config(self) -> np.void:
        raw = syscall.lookup(self._maps["config"], bytes(4), layout.CONFIG.itemsize)
        assert raw is not None
        found: np.void = np.frombuffer(raw, layout.CONFIG)[0]
        return found


@contextmanager
def mapped_flows(fast: FastPath, port: int) -> Iterator[MappedFlows]:
    made = MappedFlows(fast, port)
    try:
        yield made
    finally:
        made.close()


def test_a_deleted_and_closed_connection_is_translated_to_its_end() -> None:
    """Its FINs are translated like its data; conntrack can't do that any more.

    If the fast path had to ask again meanwhile, the kernel forwards them untranslated: then the test tries
    again.
    """
    lab = FastLab()
    until = time.monotonic() + PATIENCE
    try:
        fast = lab.accelerate()
        for port in range(7700, 7999):
            if _is_translated_to_its_end(lab, fast, port):
                return
            assert time.monotonic() < until, "the fast path had to ask again each time"
    finally:
        lab.close()


def _is_translated_to_its_end(lab: FastLab, fast: FastPath, port: int) -> bool:
    """Return whether both FINs of a connection were translated like its data.

    False if something else happened meanwhile. It is a failure if the program gave one to the kernel
    although its flow was valid.
    """
    with Talk(lab.host, "a", "far", V4["far"], port) as talk:
        assert talks_fast(lab, talk)
        with mapped_flows(fast, port) as flows:
            talk.say(2)
            assert eventually(lambda: flows.asked_ago()[0] > 1), "not asked in this very jiffy"
            lab.run("conntrack -F")
            for closing, other in ((talk.client, talk.server), (talk.server, talk.client)):
                closing.shutdown(socket.SHUT_WR)
                while not _has_ended(other):
                    handed_back = flows.is_handed_back()
                    if not flows.is_valid():
                        return False
                    assert not handed_back, "a FIN went to the kernel although the flow held"
            leaked = _leaked(lab, port)
            if not flows.is_valid():
                return False
            assert leaked == [], "a private source left the host"
    return True


def _has_ended(sock: socket.socket) -> bool:
    """Return whether the other side's FIN arrives within a moment."""
    ready, _, _ = select.select([sock], [], [], 0.02)
    return bool(ready) and sock.recv(10) == b""


def _leaked(lab: FastLab, port: int) -> list[Ether]:
    """Return frames of a connection that left the host with a private source."""
    frames = [frame for frame in map(Ether, lab.leaked()) if TCP in frame]
    return [frame for frame in frames if port in (frame[TCP].sport, frame[TCP].dport)]
