"""Leave the traffic of addresses to the kernel, for captures and traces."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Protocol

MAX_TRACE = 120.0  # seconds
MOST_TRACES = 64
_AF = {4: 2, 6: 10}
_CAPTURE = ""


class CaptureMap(Protocol):
    """Describe what is used of bpf.maps.Maps."""

    captured: list[str]

    def capture(self, family: int, packed: bytes, on: bool) -> None:
        """Leave an address's traffic to the kernel, or no longer."""


class Clockwork(Protocol):
    """Describe what is used of bpf.daemon.Timers."""

    def once(self, name: str, after: float, action: Callable[[], None], restart: bool = False) -> None:
        """Run an action once."""


class Exemptions:
    """Count who wants the kernel to forward for an address.

    Captures have no time limit; a trace ends after its seconds, even if the tracing process was killed.
    """

    def __init__(self, maps: CaptureMap, timers: Clockwork) -> None:
        self._maps, self._timers = maps, timers
        self._held: dict[str, set[str]] = {}  # addresses by holder; "" are captures

    @property
    def traced(self) -> list[str]:
        """The addresses that only traces want."""
        mine = self._held.get(_CAPTURE, set())
        return [one for one in self._maps.captured if one not in mine]

    def capture(self, address: str, on: bool) -> None:
        """Leave an address's traffic to the kernel until it is released. Raises OSError."""
        held = self._held.get(_CAPTURE, set())
        self._set(_CAPTURE, held | {address} if on else held - {address})

    def begin_trace(self, holder: str, addresses: Iterable[str], seconds: float) -> None:
        """Leave addresses to the kernel for a trace. Raises ValueError, OSError."""
        if not holder or not seconds > 0:
            raise ValueError("a trace needs a holder and a time limit")
        if len(self._held) > MOST_TRACES:
            raise ValueError(f"{MOST_TRACES} traces are running")
        self._timers.once(f"trace {holder}", seconds, lambda: self.end_trace(holder), restart=True)
        self._set(holder, set(addresses))

    def end_trace(self, holder: str) -> None:
        """Forward for the addresses of a trace again, unless others want them."""
        if holder != _CAPTURE:
            self._set(holder, set())

    def _set(self, holder: str, addresses: set[str]) -> None:
        self._held[holder] = addresses
        if not addresses:
            del self._held[holder]
        wanted = set().union(*self._held.values())
        for one in sorted(wanted ^ set(self._maps.captured)):
            address = ipaddress.ip_address(one)
            try:
                self._maps.capture(_AF[address.version], address.packed, one in wanted)
            except OSError:  # the map is full
                addresses.discard(one)
                raise
