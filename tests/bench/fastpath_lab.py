"""Build the lab of the fast path's benchmarks: a Docker Engine and two bridges.

A veth pair that joins two namespaces directly is the limit of what can be reached; if the server is on a
user-defined network, another one whose far end has Docker's DNS rules too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpf import client, rpc
from core.netlink.netns import entered
from tests.docker.engine import DockerHost
from tests.docker.engine_folder import remove_stale
from tests.support.docker_dns import write_rules

CONTROL, DATA, FLOOD = 12865, 12866, 12867  # ports: netperf's own, its data's, and the flood's
CPU = (os.cpu_count() or 1) - 1  # the CPU of everything that is measured
OTHER_CPU = 0  # the CPU of a flood's receiver
HOST, WORLD = "192.0.2.1", "192.0.2.2"
_LIMIT = "198.51.100.1", "198.51.100.2"
_PUBLISH = [f"{port}:{port}/{l4}" for port in (CONTROL, DATA, FLOOD) for l4 in ("tcp", "udp")]

# Ended connections keep no port: there are few ports, and each is used again and again.
_PORTS_LAST = "net.ipv4.tcp_max_tw_buckets=0", "net.ipv4.ip_local_port_range=1024 65000"


@dataclass(frozen=True)
class Case:
    """Describe a path: from the namespace `client` to an address of `server`."""

    name: str
    client: str
    server: str
    address: str
    has_dns_rules: bool = False


class Lab:
    """Hold the paths and the namespaces.

    `cases` are the paths through the host, `limits` are the direct pairs, without and with Docker's DNS rules
    at the far end, `host` is what the engine runs in.
    """

    def __init__(self) -> None:
        remove_stale()
        self.docker = DockerHost()
        self.host = self.docker.host
        self._servers: list[subprocess.Popen[bytes]] = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        self.docker.start()
        self.docker.import_image()
        self.docker.run("network", "create", "-o", "com.docker.network.bridge.name=br1", "bench")
        self.docker.container("client")
        self.docker.container("web", *(word for port in _PUBLISH for word in ("-p", port)))
        self.docker.container("other", "--network", "bench")
        for one, two in (("docker0", "br1"), ("br1", "docker0")):
            self.host.run(f"iptables -I DOCKER-USER -i {one} -o {two} -j ACCEPT")
        self._pair("host", "up0", HOST, self.host.namespace("world"), WORLD)
        self.host.run(f"ip route add default via {WORLD}")
        self.limits = self._limit(""), self._limit("-dns")
        write_rules(self.limits[1].server)
        client, web, other = (f"/proc/{self.docker.pid(name)}/ns/net" for name in ("client", "web", "other"))
        world = named(self.host.full("world"))
        self.cases = (
            Case("same bridge", client, web, self._address("web")),
            Case("other bridge", client, other, self._address("other"), has_dns_rules=True),
            Case("SNAT", client, world, WORLD),
            Case("published port", world, web, HOST),
        )
        for namespace in self._ends():
            subprocess.run(inside(namespace, "sysctl", "-qw", *_PORTS_LAST), check=True)
        if has_netperf():
            for server in self.servers():
                self.serve(server, "netserver", "-D", "-p", str(CONTROL))
            time.sleep(0.5)

    def _limit(self, suffix: str) -> Case:
        near, far = self.host.namespace(f"near{suffix}"), self.host.namespace(f"far{suffix}")
        self._pair(f"near{suffix}", "eth0", _LIMIT[0], far, _LIMIT[1])
        return Case("limit", named(near), named(far), _LIMIT[1], bool(suffix))

    def limit_of(self, case: Case) -> Case:
        """Return the direct pair whose far end has the same rules as the case's server."""
        return self.limits[case.has_dns_rules]

    def servers(self) -> set[str]:
        """Return the namespaces of all servers."""
        return {each.server for each in (*self.cases, *self.limits)}

    def _ends(self) -> set[str]:
        return {each.client for each in (*self.cases, *self.limits)} | self.servers()

    def vnet(self, *words: str) -> None:
        """Run a vnet-tui command on the host; AssertionError if it fails."""
        environment = {"DOCKER_HOST": self.docker.url, "VNET_STATE": str(self.docker.folder / "state")}
        done = self.host.vnet(*words, **environment)
        assert done.returncode == 0, done.stderr + done.stdout

    def _pair(self, side: str, link: str, address: str, far: str, far_address: str) -> None:
        self.host.run(f"ip link add {link} type veth peer name eth0 netns {far}", side)
        self.host.run(f"ip addr add {address}/24 dev {link}", side)
        self.host.run(f"ip link set {link} up", side)
        for command in (f"ip addr add {far_address}/24 dev eth0", "ip link set eth0 up"):
            subprocess.run(["ip", "netns", "exec", far, *command.split()], check=True)

    def _address(self, name: str) -> str:
        return self.docker.run(
            "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        )

    def serve(self, namespace: str, *words: str) -> subprocess.Popen[bytes]:
        """Start what runs until the lab is closed."""
        server = subprocess.Popen(
            inside(namespace, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._servers.append(server)
        return server

    def links(self) -> Iterator[tuple[str, str]]:
        """Return namespace and name of all links that the cases' frames pass."""
        for link in self.host.json("ip -j link"):
            if link["ifname"] != "lo":
                yield named(self.host.name), link["ifname"]
        for namespace in self._ends():
            yield namespace, "eth0"

    def forget(self) -> None:
        """Empty the host's conntrack table, so that all measurements begin alike."""
        self.host.run("conntrack -F")

    def close(self) -> None:
        """Remove everything."""
        for server in self._servers:
            server.kill()
            server.wait()
        self.docker.close()


def has_netperf() -> bool:
    """Return whether netperf is there; not every distribution has it."""
    return bool(shutil.which("netperf") and shutil.which("netserver"))


def named(name: str) -> str:
    """Return the path of a named namespace."""
    return f"/run/netns/{name}"


def inside(namespace: str, *words: str) -> list[str]:
    """Return the command that runs a command in the namespace at that path."""
    return ["nsenter", f"--net={namespace}", *words]


class FastPath:
    """Switch the fast path of the lab's host on and off."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._path = named(lab.host.name)
        self._started: client.StartResult | None = None

    def on(self) -> None:
        """Accelerate every bridge; AssertionError with the reason if it isn't on."""
        with entered(self._path):
            self._started = client.start(["all"], tied=True)
            assert self._started.answer.get("ok"), self._started.answer
            deadline = time.monotonic() + 20
            while self.status()["state"] != "on":
                assert time.monotonic() < deadline, self.status()
                time.sleep(0.02)

    def status(self) -> rpc.Answer:
        """Return the daemon's status."""
        with entered(self._path):
            return rpc.ask({"do": "status"})

    def share(self) -> float:
        """Return the fast share of all packets (0 to 1) since it was switched on."""
        verdicts = self.status()["verdicts"]
        return float(verdicts.get("FAST", 0) / max(sum(verdicts.values()), 1))

    def processes(self) -> list[int]:
        """Return its processes: the supervisor and the daemon."""
        assert self._started is not None
        return [self._started.supervisor.pid, int(self._started.answer["pid"])]

    def off(self) -> None:
        """Restore everything."""
        if self._started is not None and self._started.supervisor.stdin is not None:
            self._started.supervisor.stdin.close()
            self._started.supervisor.wait(20)
        self._started = None


@contextmanager
def lab_and_fast_path() -> Iterator[tuple[Lab, FastPath]]:
    """Yield both, and remove everything afterwards."""
    lab = Lab()
    fast = FastPath(lab)
    try:
        yield lab, fast
    finally:
        fast.off()
        lab.close()


@contextmanager
def one_cpu(cpu: int) -> Iterator[None]:
    """Run the block on that CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def read_udp_arrivals(pid: int) -> int:
    """Return the UDP datagrams for a socket in that process's namespace.

    Including those for which it had no room.
    """
    lines = [
        line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines() if "Udp:" in line
    ]
    found = dict(zip(lines[0], lines[1], strict=True))
    return int(found["InDatagrams"]) + int(found["RcvbufErrors"])
