"""The ports that processes of the host listen on, from /proc/net (proc_pid_net(5))."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path

from core.model import Listener

_FOLDER = Path("/proc/thread-self/net")
# From here on the kernel hands ports to clients (ip_local_port_range): those of UDP come and go.
_FIRST_OF_CLIENTS = 32768
# The state in which a socket waits for others, of include/net/tcp_states.h: TCP_LISTEN, and TCP_CLOSE, in
# which a UDP socket without a peer is.
_WAITING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}


def read_listeners() -> tuple[Listener, ...]:
    """Those of the thread's network namespace, sorted; families that this kernel lacks are left out."""
    return tuple(sorted(set(_all()), key=lambda one: (one.l4_proto, one.port, one.address)))


def _all() -> Iterator[Listener]:
    for file, waiting in _WAITING.items():
        try:
            lines = (_FOLDER / file).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == waiting:
                address, _, port = words[1].partition(":")
                found = Listener(file.removesuffix("6"), _address(address), int(port, 16))
                if found.l4_proto == "tcp" or found.port < _FIRST_OF_CLIENTS:
                    yield found


def _address(text: str) -> str:
    """An address in the kernel's hexadecimal: words of 32 bits, each in the host's byte order."""
    words = (int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(b"".join(words)))
