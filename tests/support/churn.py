"""Change containers and routes without end.

Containers (namespaces with a veth on a bridge and an address) start and end so many times a second; one
changes its MAC, and a route comes and goes.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from typing import Self

from tests.kernel.fastlab import FastLab
from tests.support.host import ThrowawayHost
from tests.support.repeated import Repeated

OFTEN = 50  # times a second
_TOGETHER = 4  # containers at a time


class Churn:
    """Start and remove containers within a context manager; `gone` counts them.

    `network` is the first three bytes of their addresses in a /16, of which so many are used in turn.
    """

    def __init__(
        self, host: ThrowawayHost, bridge: str, network: str, rate: float = 20, addresses: int = 200
    ) -> None:
        self._host, self._bridge, self._network, self._addresses = host, bridge, network, addresses
        self._every = 1 / rate
        self._there: list[str] = []
        self._numbers = itertools.count()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.gone = 0
        self.seconds = 0.0
        self.error = ""

    @property
    def done(self) -> int:
        """Return `gone`, under the name that tests/support/repeated.py uses."""
        return self.gone

    @property
    def rate(self) -> float:
        """Return how many were removed per second; call it at the end."""
        return self.gone / self.seconds

    def _run(self) -> None:
        began = due = time.monotonic()
        try:
            while not self._ending.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic() - 1) + self._every
                self._step()
        except AssertionError as error:
            self.error = str(error)
        self.seconds = time.monotonic() - began

    def _step(self) -> None:
        """Remove one container and start one."""
        number = next(self._numbers)
        name, link = f"{self._host.prefix}-k{number}", f"k{number}"
        lines = f"netns del {self._there.pop(0)}\n" if len(self._there) >= _TOGETHER else ""
        self.gone += bool(lines)
        lines += f"netns add {name}\nlink add {link} type veth peer name eth0 netns {name}\n"
        self._there.append(name)
        self._ip(self._host.name, f"{lines}link set {link} master {self._bridge} up\n")
        address = f"{self._network}.{number % self._addresses + 1}/16"
        self._ip(name, f"link set lo up\naddr add {address} dev eth0\nlink set eth0 up\n")

    @staticmethod
    def _ip(namespace: str, lines: str) -> None:
        words = ["nsenter", f"--net=/run/netns/{namespace}", "ip", "-batch", "-"]
        done = subprocess.run(words, input=lines, text=True, capture_output=True, check=False)
        assert not done.returncode, f"{lines}: {done.stderr}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for name in self._there:
            subprocess.run(["ip", "netns", "del", name], check=False)
        assert not self.error, self.error


def flap(lab: FastLab) -> Repeated:
    """Start one more container, which changes its MAC all the time."""
    space = lab.host.namespace("x")
    lab.ip("host", f"link add v-x type veth peer name eth0 netns {space}\nlink set v-x master docker0 up\n")
    lab.ip("x", "addr add 172.17.3.1/16 dev eth0\nlink set eth0 up\n")
    lines = [f"link set eth0 address 02:00:00:00:77:0{number}" for number in (1, 2)]
    return Repeated(lab.host, "x", lines, OFTEN)


def reroute(lab: FastLab) -> Repeated:
    """Add and remove a route all the time."""
    lines = [f"route {what} 203.0.113.128/25 via 192.0.2.2" for what in ("add", "del")]
    return Repeated(lab.host, "host", lines, OFTEN)
