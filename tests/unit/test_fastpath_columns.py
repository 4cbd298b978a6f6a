"""Read the fast path's maps as columns: every field, both families, many rows."""

from __future__ import annotations

import ipaddress
import time

import numpy as np
import pytest

from bpf import layout
from bpf.client import fast_flows

COUNT = 10_000  # more than one batch
HZ = 250


def maps_of(family: int) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and values of a map with random bytes."""
    random = np.random.default_rng(family)
    key = layout.KEY4 if family == 4 else layout.KEY6
    keys, flows = (
        np.frombuffer(random.bytes(COUNT * dtype.itemsize), dtype).copy() for dtype in (key, layout.FLOW)
    )
    flows["first_seen"], flows["last_seen"] = np.arange(COUNT), np.arange(COUNT) + HZ
    return keys, flows


def address(octets: np.ndarray, family: int) -> str:
    return str(ipaddress.ip_address(octets[: 4 if family == 4 else 16].tobytes()))


def address_text(octets: np.ndarray) -> str:
    found = ipaddress.IPv6Address(octets.tobytes())
    return str(found.ipv4_mapped or found)


@pytest.mark.parametrize("family", [4, 6])
def test_every_row_equals_the_map_entry(family: int) -> None:
    keys, flows = maps_of(family)
    now = time.time_ns()
    # The map holds the low half of jiffies.
    found = fast_flows(keys, flows, family, (1 << 32) + COUNT + HZ, HZ)
    assert len(found) == COUNT and (found["family"] == family).all()
    for name in ("l4_proto", "sport", "dport"):
        assert np.array_equal(found[name], keys[name]), name
    for name in ("in_ifindex", "out_ifindex", "packets", "bytes", "new_sport", "new_dport"):
        assert np.array_equal(found[name], flows[name]), name
    assert found["live"].tolist() == (flows["action"] >= 3).tolist()
    for row in range(0, COUNT, 97):
        for name, held in (("src", keys), ("dst", keys), ("new_src", flows), ("new_dst", flows)):
            assert address_text(found[name][row]) == address(held[name][row], family)
    ago = now - found["first_seen"].astype(np.int64)
    assert np.allclose(ago, (COUNT + HZ - np.arange(COUNT)) * 1e9 / HZ, atol=10e9)
    assert (found["last_seen"] - found["first_seen"] == 1_000_000_000).all()


def test_an_empty_map_has_no_rows() -> None:
    keys, flows = maps_of(4)
    assert len(fast_flows(keys[:0], flows[:0], 4, 0, HZ)) == 0
