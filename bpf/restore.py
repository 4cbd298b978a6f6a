"""Gives everything back to the kernel: filters and the marks of connections; whoever ends last does it, twice
does no harm."""

from __future__ import annotations

from bpf import clsact, entries, runtime


def restore() -> int | None:
    """Put right what is left to be put right here: how many connections were handed back, None where there
    was nothing to do. Raises OSError where conntrack refuses."""
    state = runtime.remembered()
    if state is None:
        return None
    for ifindex in clsact.remains():
        clsact.detach(ifindex)
    handed = entries.hand_back(state.mark_mask)
    runtime.forget()
    return handed
