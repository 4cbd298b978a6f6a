"""Let the kernel forward the packets that a capture or trace should see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from secrets import token_hex

from bpf import rpc

_MOST = 256
_GRACE = 5.0  # seconds that a trace needs to begin and end


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
    status = rpc.ask({"do": "status"})
    before = set(status.get("captured", ())) - set(status.get("traced", ()))
    return [one for one in addresses if one not in before][:_MOST]


@contextmanager
def traced_by_kernel(addresses: Sequence[str], seconds: float) -> Iterator[str]:
    """Take addresses off the fast path in the body; yields a note, "" if it is off.

    If this process is killed, the fast path forwards for them again a few seconds after `seconds`."""
    holder, note, taken = token_hex(8), "", False
    request = {"do": "trace", "holder": holder, "addresses": list(addresses), "seconds": seconds + _GRACE}
    with suppress(rpc.NotRunning, OSError):
        answer = rpc.ask(request)
        taken = bool(answer.get("ok"))
        note = f"The fast path left {', '.join(addresses)} to the kernel meanwhile."
        note = note if taken else f"{rpc.refusal_text(answer)} Some links may not see the flow."
    try:
        yield note
    finally:
        if taken:
            with suppress(rpc.NotRunning, OSError):
                rpc.ask({"do": "untrace", "holder": holder})
