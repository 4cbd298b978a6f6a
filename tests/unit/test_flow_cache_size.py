"""The capacity of the flow cache."""

from __future__ import annotations

import os

import pytest

from bpf import maps


@pytest.mark.parametrize(
    ("gigabytes", "connections", "capacity"),
    [
        (64, "262144", 524288),  # two flows per connection
        (24, "262144", 524288),
        (2, "262144", 32768),  # limited to a hundredth of the memory
        (64, "50000", 65536),  # rounded to a power of two
        (0.25, "65536", 16384),  # the minimum
        (2, "", 32768),  # conntrack isn't loaded yet
    ],
)
def test_capacity_of_the_flow_cache(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, connections: str, capacity: int
) -> None:
    """The capacity depends on conntrack's size and the machine's memory."""
    pages = {"SC_PHYS_PAGES": int(gigabytes * 2**30) // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(maps, "read_sysctl", lambda name: connections)
    assert maps.flow_capacity() == capacity
