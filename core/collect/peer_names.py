"""Names of addresses that are nobody's here: /etc/hosts (hosts(5)), and, where asked for, reverse DNS."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from core.flows.words import address_bytes, address_text

HOSTS = Path("/etc/hosts")
# Has the resolver asked for the names of foreign addresses: its servers then learn who looks at whom.
SWITCH = "VNET_REVERSE_DNS"
_MOST = 4096  # answers that are kept
_ASKED_AT_ONCE = 16


def read_hosts(path: Path = HOSTS) -> dict[bytes, str]:
    """The first name of each address in a hosts file, by its 16 bytes; loopback's are left out."""
    names: dict[bytes, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            words = line.partition("#")[0].split()
            if len(words) >= 2 and not words[0].startswith(("127.", "::1", "fe00::", "ff0")):
                with suppress(ValueError):
                    names.setdefault(address_bytes(words[0]), words[1])
    return names


class PeerNames:
    """What foreign addresses are called. `reverse` has the resolver asked too, on a thread of its own, each
    address once; without it nothing ever leaves the host."""

    def __init__(self, path: Path = HOSTS, reverse: bool | None = None) -> None:
        self._path, self._stamp = path, -1
        self._hosts: dict[bytes, str] = {}
        self._answers: dict[bytes, str] = {}
        self.reverse = os.environ.get(SWITCH) == "1" if reverse is None else reverse
        self._questions: SimpleQueue[bytes] = SimpleQueue()
        self._asking: threading.Thread | None = None

    def known(self) -> Mapping[bytes, str]:
        """All names that are known now."""
        with suppress(OSError):
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._hosts, self._stamp = read_hosts(self._path), stamp
        if not self._answers:
            return self._hosts
        return {raw: name for raw, name in dict(self._answers).items() if name} | self._hosts

    def ask(self, addresses: Iterable[bytes]) -> None:
        """Have the resolver asked for the names of some addresses, where that is wanted; returns at once."""
        if not self.reverse:
            return
        if len(self._answers) > _MOST:
            self._answers.clear()
        fresh = [raw for raw in addresses if raw not in self._answers and raw not in self._hosts]
        for raw in fresh[:_ASKED_AT_ONCE]:
            self._answers[raw] = ""
            self._questions.put(raw)
        if fresh and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, name="reverse-dns", daemon=True)
            self._asking.start()

    def _ask(self) -> None:
        while True:
            try:
                raw = self._questions.get_nowait()
            except Empty:
                return
            with suppress(OSError, UnicodeError):
                self._answers[raw] = socket.gethostbyaddr(address_text(raw))[0]
