"""Build a large host for the long run, and change it all the time."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.machine import Machine, ok

BRIDGE = "br-soak"
_OF_A_BRIDGE = 1000  # ports; a Linux bridge takes at most 1023
_TOGETHER = 8  # containers at a time, each with its own thread
_FLAPPING = 10  # links
_ADDRESSES = 25  # per thread
_ECHO = """
import socket
s = socket.create_server(("0.0.0.0", 7000)); print("ready", flush=True)
c, _ = s.accept()
while data := c.recv(4096): c.sendall(data)
"""
_TALK = """
import socket, sys, time
c = socket.create_connection((sys.argv[1], 7000), 60)
while True:
    c.sendall(b"x" * 1000); c.recv(4096); time.sleep(0.005)
"""
_FILL = "import sys; from tests.support.bulk_conntrack import insert; insert(int(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the host, and how much changes in it per second."""

    connections: int = 200_000
    rules: int = 5_000
    routes: int = 20_000
    ports: int = 2_000
    churn: float = 20.0
    flaps: float = 500.0


SMALL = Sizes(2_000, 100, 400, 60, 5.0, 50.0)


def build(machine: Machine, sizes: Sizes) -> None:
    """Create the network soak with containers a and b, and everything large."""
    ok(machine, "network create soak --subnet 10.80.0.0/16")
    for name in ("a", "b"):
        ok(machine, f"container create {name} --network soak")
    machine.run("ip netns add many")
    machine.run("ip -batch -", text="".join(f"{line}\n" for line in _links(sizes)))
    many = [f"q{port}" for port in range(sizes.ports)] + [f"g{link}" for link in range(_FLAPPING)]
    machine.run("ip -n many -batch -", text="".join(f"link set {name} up\n" for name in many))
    numbers = ((number >> 8, number & 255) for number in range(sizes.routes))
    routes = (f"route add 100.64.{high}.{low}/32 dev {BRIDGE}\n" for high, low in numbers)
    machine.run("ip -batch -", text="".join(routes))
    rules = "".join(
        f"\t\tip saddr 198.18.{number >> 8}.{number & 255} tcp dport {number + 1} counter\n"
        for number in range(sizes.rules)
    )
    chain = f"chain input {{\n\t\ttype filter hook input priority filter; policy accept;\n{rules}\t}}"
    machine.run("nft -f -", text=f"table inet soak {{\n\t{chain}\n}}\n")
    machine.run([sys.executable, "-c", _FILL, str(sizes.connections)])


def _links(sizes: Sizes) -> Iterator[str]:
    for first in range(0, sizes.ports, _OF_A_BRIDGE):
        bridge = f"many{first // _OF_A_BRIDGE}"
        yield f"link add {bridge} type bridge"
        yield f"link set {bridge} up"
        for port in range(first, min(first + _OF_A_BRIDGE, sizes.ports)):
            yield f"link add p{port} type veth peer name q{port} netns many"
            yield f"link set p{port} master {bridge} up"
    for link in range(_FLAPPING):
        yield f"link add f{link} type veth peer name g{link} netns many"


@dataclass
class Count:
    """Count how often something was done."""

    done: int = 0
    error: str = ""


@contextmanager
def activity(machine: Machine, sizes: Sizes) -> Iterator[dict[str, Count]]:
    """Start and stop containers, flap links and send traffic from a to b.

    Yields the counts so far.
    """
    stop = threading.Event()
    counts = {"containers": Count(), "flaps": Count()}
    churns, flaps = [_Churn(machine, number) for number in range(_TOGETHER)], _Flaps(machine)
    rate = sizes.churn / _TOGETHER
    steps = [(churn.step, rate, counts["containers"]) for churn in churns]
    steps.append((flaps.step, sizes.flaps, counts["flaps"]))
    threads = [threading.Thread(target=_paced, args=(stop, *each)) for each in steps]
    with _talking(machine):
        for thread in threads:
            thread.start()
        try:
            yield counts
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            for one in (*churns, flaps):
                one.close()


def _paced(stop: threading.Event, step: Callable[[], None], rate: float, count: Count) -> None:
    """Call something so many times a second; catch up with at most one second."""
    due = time.monotonic()
    try:
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - 1) + 1 / rate
            step()
            count.done += 1  # under the interpreter's lock; only a count
    except (AssertionError, OSError) as error:
        count.error = str(error)


class _Churn:
    """Start containers, have them ping their gateway, and remove them."""

    def __init__(self, machine: Machine, lane: int) -> None:
        self._machine, self._lane = machine, lane
        self._numbers = itertools.count()
        self._ping: subprocess.Popen[bytes] | None = None

    def step(self) -> None:
        number = next(self._numbers)
        name, before = f"k{self._lane}x{number}", f"k{self._lane}x{number - 1}"
        lines = f"netns add {name}\nlink add {name} type veth peer name eth0 netns {name}\n"
        if self._ping:
            self._ping.wait()
            lines = f"netns del {before}\n{lines}"
        self._machine.run("ip -batch -", text=f"{lines}link set {name} master {BRIDGE} up\n")
        address = f"10.80.9.{self._lane * _ADDRESSES + number % _ADDRESSES + 1}/16"
        inside = f"link set lo up\naddr add {address} dev eth0\nlink set eth0 up\n"
        self._machine.run(f"ip -n {name} -batch -", text=inside)
        words = self._machine.words(
            "ping", "-q", "-c", "3", "-i", "0.02", "-w", "1", "10.80.0.1", inside=name
        )
        self._ping = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        if self._ping:
            self._ping.wait()


class _Flaps:
    """Set links down and up by one ip(8) process that reads lines."""

    def __init__(self, machine: Machine) -> None:
        self._ip = subprocess.Popen(machine.words("ip", "-batch", "-"), stdin=subprocess.PIPE, text=True)
        self._lines = itertools.cycle(
            f"link set f{link} {state}\n" for state in ("up", "down") for link in range(_FLAPPING)
        )

    def step(self) -> None:
        assert self._ip.stdin
        self._ip.stdin.write(next(self._lines))
        self._ip.stdin.flush()

    def close(self) -> None:
        self._ip.communicate()


@contextmanager
def _talking(machine: Machine) -> Iterator[None]:
    """Send data from a to b without a pause."""
    at = next(one["local"] for one in machine.json("ip -j addr show eth0", "b")[0]["addr_info"])
    run = (sys.executable, "-c")
    with subprocess.Popen(machine.words(*run, _ECHO, inside="b"), stdout=subprocess.PIPE, text=True) as echo:
        try:
            assert echo.stdout and echo.stdout.readline() == "ready\n"
            with subprocess.Popen(machine.words(*run, _TALK, at, inside="a")) as talk:
                try:
                    yield
                    assert talk.poll() is None, "the connection of a to b ended"
                finally:
                    talk.kill()
        finally:
            echo.kill()
