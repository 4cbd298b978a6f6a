"""Run etcd on a throw-away host of an underlay, and overlays that use it."""

from __future__ import annotations

import json
import subprocess
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from core.model.etcd import address_key, host_key
from core.plan.vxlan import vni_by_name
from tests.support.machine import Machine, ok
from tests.support.underlay import Underlay, addresses_of, agent, overlay_state, underlay
from tests.support.waiting import PATIENCE, wait_until

TUNNEL = f"vx{vni_by_name('blue')}"
CREATE = "network create blue --kind overlay --etcd"


class EtcdServer:
    """Run etcd on a host, with its data in memory; `url` is where it listens."""

    def __init__(self, host: Machine, address: str) -> None:
        self.host = host
        self.url = f"http://{address}:2379"
        host.run("ip link set lo up")
        self.start()

    def start(self) -> None:
        """Start it with the data that it had, and wait until it answers."""
        words = [
            "etcd", "--data-dir=/run/etcd", f"--listen-client-urls={self.url}", "--log-level=error",
            f"--advertise-client-urls={self.url}", "--unsafe-no-fsync",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            self.host.words("setpriv", "--pdeathsig", "KILL", *words),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers, "etcd")

    def _answers(self) -> bool:
        return "is healthy" in self.host.run(
            ["sh", "-c", f"etcdctl --endpoints {self.url} endpoint health 2>&1"], check=False
        )

    @property
    def _ctl(self) -> list[str]:
        return ["etcdctl", "--endpoints", self.url]

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()
        self.host.run("pkill -KILL -x etcd", check=False)
        wait_until(lambda: not self.host.run("pgrep -x etcd", check=False), "the end of etcd")

    def content(self) -> dict[str, str]:
        """Return all keys with their values."""
        found = self._json("get", "--prefix", "")
        return {
            b64decode(one["key"]).decode(): _decoded(one.get("value", "")) for one in found.get("kvs", [])
        }

    def lease(self, key: str) -> int:
        """Return the id of a key's lease."""
        (found,) = self._json("get", key)["kvs"]
        return int(found["lease"])

    def seconds_left(self, lease: int) -> int:
        """Return how long a lease lasts if it isn't renewed, -1 if it has expired."""
        return int(self._json("lease", "timetolive", f"{lease:x}")["ttl"])

    def _json(self, *words: str) -> Any:
        return json.loads(self.host.run([*self._ctl, *words, "-w", "json"]))

    def put(self, key: str, value: str) -> None:
        """Set a key, which is bound to no lease."""
        self.host.run([*self._ctl, "put", "--", key], text=value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.host.run([*self._ctl, "del", "--", key])

    def close(self) -> None:
        """End it; its data go with its host."""
        self._process.kill()
        self._process.wait()


def _decoded(value: str) -> str:
    return b64decode(value).decode("utf-8", "replace")


class Cluster:
    """Hosts of an overlay, and one that runs etcd."""

    def __init__(self, under: Underlay, stack: ExitStack) -> None:
        self.under, self.stack = under, stack
        self.hosts = under.hosts[:-1]
        self.etcd = stack.enter_context(closing(EtcdServer(under.hosts[-1], under.address(under.hosts[-1]))))
        self.url = self.etcd.url

    def join(self, options: str = "") -> None:
        """Create the overlay `blue` on the first host, and join it on the others."""
        ok(self.hosts[0], f"{CREATE} {self.url} {options}")
        for host in self.hosts[1:]:
            ok(host, f"network join blue --etcd {self.url}")

    def agent(self, host: Machine) -> subprocess.Popen[str]:
        """Run the agent on a host until the end of the test."""
        return self.stack.enter_context(agent(host))

    def leased(self) -> dict[str, str]:
        """Return the leased addresses of blue with their hosts."""
        start = address_key("blue")
        found = {name: value for name, value in self.etcd.content().items() if name.startswith(start)}
        return {name.removeprefix(start): json.loads(value)["host"] for name, value in found.items()}

    def joined(self) -> set[str]:
        """Return the hosts of blue."""
        start = host_key("blue")
        return {one.removeprefix(start) for one in self.etcd.content() if one.startswith(start)}


@contextmanager
def cluster(count: int, seconds: int = 120) -> Iterator[Cluster]:
    """Start `count` hosts and one with etcd."""
    with ExitStack() as stack:
        under = stack.enter_context(underlay(count + 1, VNET_ETCD_TTL=str(seconds)))
        yield Cluster(under, stack)


def whole_state(found: Cluster, host: Machine) -> dict[str, Any]:
    """Return what commands may change on a host and in etcd."""
    return {**overlay_state(host), "etcd": found.etcd.content()}


def lines_of(started: subprocess.Popen[str], text: str) -> str:
    """Return the next line of an agent with this text; fail if it doesn't come."""
    assert started.stdout is not None
    timer = threading.Timer(PATIENCE, started.kill)
    timer.start()
    try:
        found = next((line for line in started.stdout if text in line), "")
    finally:
        timer.cancel()
    assert found, f"the agent never said: {text}"
    return found


def container_at(host: Machine, name: str, address: str) -> bool:
    """Create a container with this address, and return whether it has it."""
    ok(host, f"container create {name} --network blue --address {address}")
    return addresses_of(host, name) == [address]
