"""Measure the first snapshot of 200 namespaces, against `ip addr` in each."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.collect import links, routes
from core.collect.links import read_nets, read_stats
from core.collect.namespaces import read_namespaces
from core.collect.snapshot import read_snapshot
from tests.bench.report import Figure, paired, percentile
from tests.bench.size import sized

NAMESPACES = sized(200, 4)
_REPETITIONS = sized(9, 2)
_PREFIX = f"vtbench{os.getpid()}x"


def run() -> list[Figure]:
    """Measure the ratios of snapshots and of their parts, alternating with `ip`."""
    with many_namespaces():
        found, _ = read_namespaces(deep=False)
        namespaces = [ns for ns in found.values() if any(name.startswith(_PREFIX) for name in ns.names)]
        count = sum(len(net.links) for net in read_nets(namespaces).values())
        how = f"alternating with `ip -all netns exec ip -o addr`; {count} links, median of {_REPETITIONS}"
        whole = paired(seconds(first_snapshot), seconds(ip_addresses), _REPETITIONS)
        parts = paired(seconds(read_namespaces_and_links), seconds(ip_addresses), _REPETITIONS)
        again = repeated(lambda: read_nets(namespaces, found.values()))
        scans = repeated(lambda: read_namespaces(deep=False))
        counters = repeated(lambda: read_stats(namespaces))
    return [
        Figure(f"first full snapshot, {NAMESPACES} namespaces x 2 links", "<= 0.5 x ip", str(whole), how),
        Figure("of which: namespaces, links, addresses, routes, neighbours, bridges", "", str(parts), how),
        Figure("the same links again", "", f"{again:.1f} ms", f"{count} links, median"),
        Figure("quick scan for namespaces", "", f"{scans:.1f} ms", f"{len(found)} namespaces, median"),
        Figure("all link counters", "", f"{counters:.1f} ms", f"{count} links, median"),
    ]


def first_snapshot() -> None:
    """Read all parts with empty caches."""
    forget()
    read_snapshot()


def forget() -> None:
    """Clear the caches of decoded messages."""
    for module in (links, routes):
        for each in vars(module).values():
            if hasattr(each, "cache_clear"):
                each.cache_clear()


def read_namespaces_and_links() -> None:
    """Read the rtnetlink parts of a snapshot."""
    forget()
    read_nets(read_namespaces(deep=True)[0].values())


def ip_addresses() -> None:
    """Read the addresses of the same machine with `ip`."""
    subprocess.run(["ip", "-all", "netns", "exec", "ip", "-o", "addr"], stdout=subprocess.DEVNULL, check=True)


def seconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that returns the duration of the work."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return timed


def repeated(work: Callable[[], object]) -> float:
    """Return the median duration of some work in milliseconds."""
    timed = seconds(work)
    return percentile([timed() for _ in range(sized(15, 2))], 0.5) * 1000


@contextmanager
def many_namespaces() -> Iterator[None]:
    """Create a namespace with a bridge and NAMESPACES connected to it.

    Each has lo and a veth with an address.
    """
    host, names = f"{_PREFIX}-host", [f"{_PREFIX}-{number}" for number in range(NAMESPACES)]
    try:
        batch([f"netns add {name}" for name in (host, *names)])
        batch(["link add br0 type bridge", "link set br0 up"], host)
        batch([f"link add v{n} type veth peer name eth0 netns {name}" for n, name in enumerate(names)], host)
        batch([f"link set v{number} master br0 up" for number in range(NAMESPACES)], host)
        for number, name in enumerate(names):
            batch([f"addr add 10.9.{number // 250}.{number % 250 + 2}/16 dev eth0", "link set eth0 up",
                   "link set lo up"], name)  # fmt: skip
        yield
    finally:
        batch([f"netns del {name}" for name in (*names, host)])


def batch(lines: list[str], inside: str = "") -> None:
    """Run `ip` commands in one process; failures don't stop the others."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "batch"
        file.write_text("\n".join(lines))
        words = ["ip", *(["-n", inside] if inside else []), "-force", "-batch", str(file)]
        subprocess.run(words, check=False, stderr=subprocess.DEVNULL)
