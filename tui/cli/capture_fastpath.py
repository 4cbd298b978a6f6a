"""Let the kernel forward the packets that a capture should see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from bpf import rpc

_MOST = 256


@contextmanager
def left_to_kernel(addresses: Sequence[str]) -> Iterator[None]:
    """Take addresses off the fast path in the body, if it is on.

    If this process is killed they stay off it: `vnet-tui fastpath status` lists them, and
    `vnet-tui accelerate --release ADDRESS` accelerates them again."""
    taken = []
    try:
        for address in _accelerated(addresses):
            if rpc.ask({"do": "capture", "address": address}).get("ok"):
                taken.append(address)
    except (rpc.NotRunning, OSError):
        pass
    try:
        yield
    finally:
        for address in taken:
            with suppress(rpc.NotRunning, OSError):
                rpc.ask({"do": "release", "address": address})


def _accelerated(addresses: Sequence[str]) -> list[str]:
    """Return the addresses that the fast path may forward. Raises NotRunning, OSError."""
    if not addresses:
        return []
    before = set(rpc.ask({"do": "status"}).get("captured", ()))
    return [one for one in addresses if one not in before][:_MOST]
