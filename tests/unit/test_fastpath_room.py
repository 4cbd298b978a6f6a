"""The capacity of the flow cache."""

from __future__ import annotations

import os

import pytest

from bpf import maps


@pytest.mark.parametrize(
    ("gigabytes", "connections", "room"),
    [
        (64, "262144", 524288),  # two for each connection
        (24, "262144", 524288),
        (2, "262144", 32768),  # a hundredth of the memory
        (64, "50000", 65536),  # a power of two, and no more than that
        (0.25, "65536", 16384),  # never less
        (2, "", 32768),  # conntrack is not there yet
    ],
)
def test_room(monkeypatch: pytest.MonkeyPatch, gigabytes: float, connections: str, room: int) -> None:
    """It depends on conntrack's size and the machine's memory."""
    pages = {"SC_PHYS_PAGES": int(gigabytes * 2**30) // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(maps, "read_sysctl", lambda name: connections)
    assert maps.flow_capacity() == room
