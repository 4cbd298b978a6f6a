"""Run the fast path in a throw-away host; check every byte of connections."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from bpf import layout, rpc, runfile, syscall
from bpf.layout import VERDICTS
from bpf.maps import possible_cpus
from core.netlink.netns import entered
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE

_SUPERVISOR = ("-m", "bpf.supervisor")
_ROOT = Path(__file__).parents[2]


class FastPath:
    """Run supervisor and daemon in the namespace of `host`, as a context manager."""

    def __init__(
        self,
        host: ThrowawayHost,
        *targets: str,
        tied: bool = False,
        run: Sequence[str] = ("-m", "bpf.supervisor"),
    ) -> None:
        self.host = host
        words = ["nsenter", f"--net=/run/netns/{host.name}", sys.executable, *run]
        self.supervisor = subprocess.Popen(
            [*words, *(["--tied"] if tied else []), "--", *targets],
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
        )
        assert self.supervisor.stdout is not None
        self.answer: dict[str, Any] = json.loads(self.supervisor.stdout.readline() or b"{}")

    def __enter__(self) -> Self:
        assert self.answer.get("ok"), self.answer
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Send a request to the daemon; return its answer."""
        return rpc.ask({"do": do, **more}, self.host.inode)

    def status(self, **more: Any) -> dict[str, Any]:
        """Return the status answer."""
        return self.ask("status", **more)

    def count(self, verdict: str, port: str = "") -> int:
        """Return the packets of a verdict, on one port or on all."""
        found = self.status()
        rows = {row["name"]: row["verdicts"] for row in found["ports"]}
        return int((rows.get(port, {}) if port else found["verdicts"]).get(verdict, 0))

    def forwards(self, talk: Talk, port: str = "v-a") -> bool:
        """Return whether it forwards the packets of a connection that arrive at that port now."""
        before = self.count("FAST", port)
        talk.say(10)
        return self.count("FAST", port) >= before + 10

    def is_on(self, on: str = "on") -> bool:
        """Return whether this is the state."""
        return bool(self.status()["state"] == on)

    def kill(self, *whom: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the "daemon", the "supervisor" or both."""
        pids = {"daemon": int(self.answer["pid"]), "supervisor": self.supervisor.pid}
        for each in whom:
            os.kill(pids[each], number)

    def end(self) -> None:
        """Turn it off, and wait until both processes have ended."""
        with suppress(OSError):
            os.kill(int(self.answer.get("pid", 0)) or self.supervisor.pid, signal.SIGCONT)
        self.supervisor.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.supervisor.wait(PATIENCE)
        if self.supervisor.poll() is None:
            self.supervisor.kill()
            self.supervisor.wait()
        assert self.supervisor.stdout is not None
        self.supervisor.stdout.close()
        if self.supervisor.stdin:
            with suppress(OSError):
                self.supervisor.stdin.close()


def attached(host: ThrowawayHost, kind: str = "") -> set[str]:
    """Return the interfaces that have the program, as bpftool lists them.

    `kind`: one kind of attachment, or all. Those at clsact, on kernels without tcx, outlive killed
    processes until the next start or recover.
    """
    (found,) = host.json("bpftool -j net")
    ours = [each for each in found["tc"] if each.get("name") == "vnet_fastpath"]
    return {each["devname"] for each in ours if each.get("kind", "").startswith(kind)}


def leftovers(host: ThrowawayHost) -> list[str]:
    """Return everything that the fast path leaves while it is on."""
    found = sorted(attached(host))
    found += [f"table {name}" for name in host.run("nft list tables").splitlines() if "vnet_fastpath" in name]
    if host.run("sysctl -n net.netfilter.nf_conntrack_tcp_be_liberal").strip() != "0":
        found.append("be_liberal")
    if marked(host):
        found.append("marks")
    found += [path.name for path in runfile.DIRECTORY.glob(f"fastpath-{host.inode}.*")]
    return found


def marked(host: ThrowawayHost) -> list[str]:
    """Return the connections with our marks, as conntrack(8) prints them.

    Without the host's own multicast (IGMP), which may happen at any time.
    """
    lines = host.run("conntrack -L", check=False).splitlines()
    found = [line for line in lines if line.startswith(("tcp", "udp"))]
    return [
        line for line in found for word in line.split() if word.startswith("mark=") and int(word[5:]) >> 24
    ]


def map_count(counters: int, name: str) -> int:
    """Return the packets of a verdict from the map, without asking the daemon."""
    verdict = next(each.number for each in VERDICTS if each.name == name)
    size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
    rows = [syscall.lookup(counters, struct.pack("=I", slot), size) or bytes(size) for slot in range(6)]
    return int(np.frombuffer(b"".join(rows), np.uint64).reshape(-1, layout.COUNTERS)[:, verdict].sum())


class Guard:
    """Fail if private source addresses arrive at one link of a namespace.

    10.0.0.0/8, 172.16.0.0/12, fc00::/7; a context manager, which fails at its end.
    """

    _FILTER = (  # classic BPF: Ethernet type; then the source's first bits
        (0x28, 0, 0, 12), (0x15, 0, 6, 0x0800), (0x20, 0, 0, 26), (0x54, 0, 0, 0xFF000000),
        (0x15, 8, 0, 0x0A000000), (0x20, 0, 0, 26), (0x54, 0, 0, 0xFFF00000), (0x15, 5, 4, 0xAC100000),
        (0x15, 0, 3, 0x86DD), (0x30, 0, 0, 22), (0x54, 0, 0, 0xFE), (0x15, 1, 0, 0xFC),
        (0x06, 0, 0, 0), (0x06, 0, 0, 200),
    )  # fmt: skip

    def __init__(self, host: ThrowawayHost, inside: str, link: str) -> None:
        with entered(f"/run/netns/{host.full(inside)}"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        code = b"".join(struct.pack("=HBBI", *each) for each in self._FILTER)
        buffer = ctypes.create_string_buffer(code, len(code))
        filled = struct.pack("HL", len(self._FILTER), ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, 26, filled)  # SO_ATTACH_FILTER
        self._socket.bind((link, 3))
        self._socket.setblocking(False)

    def leaked(self) -> list[bytes]:
        """Return the packets since the last call."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(200))
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            assert kind is not None or self.leaked() == []
        finally:
            self.close()


def datagram(sock: socket.socket, send: Callable[[], object], again: bool = False) -> tuple[bytes, Any]:
    """Receive a datagram after `send`; return its data and sender.

    It is sent again if the kernel dropped packets meanwhile: all namespaces share each CPU's queue
    (net.core.netdev_max_backlog), which a flood elsewhere fills. With `again` (the fast path is off, so it
    can't have caused the loss) it is always sent again. Raises TimeoutError as the socket would.
    """
    patience = sock.gettimeout()
    assert patience
    end, dropped, sent = time.monotonic() + patience, _dropped(), 1
    send()
    try:
        while True:
            sock.settimeout(min(2.0, max(0.001, end - time.monotonic())))
            try:
                return sock.recvfrom(1000)
            except TimeoutError as error:
                if time.monotonic() >= end:
                    error.add_note(f"nothing came, sent {sent} times")
                    raise
                if dropped != (dropped := _dropped()) or again:
                    send()
                    sent += 1
    finally:
        sock.settimeout(patience)


def _dropped() -> int:
    """Return the packets dropped by CPU queues: column 2 of /proc/net/softnet_stat."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())


class Talk:
    """Talk over TCP or UDP between two namespaces (by short names)."""

    def __init__(
        self, host: ThrowawayHost, here: str, there: str, address: str, port: int = 7000, udp: bool = False,
        to: int = 0, family: int = socket.AF_INET, patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        self._udp, self._count = udp, 0
        self._listener = self._socket(host, there, family, kind)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        self.client = self._socket(host, here, family, kind)
        self.client.settimeout(patience)
        if udp:
            self.client.connect((address, to or port))
            self.server = self._listener
        else:
            self._listener.listen()
            self.client.connect((address, to or port))
            self.server, self.seen_from = self._listener.accept()
            self.server.settimeout(PATIENCE)

    @staticmethod
    def _socket(host: ThrowawayHost, inside: str, family: int, kind: int) -> socket.socket:
        with entered(f"/run/netns/{host.full(inside)}"):
            made = socket.socket(family, kind)
        made.settimeout(PATIENCE)
        return made

    def say(self, times: int = 1) -> None:
        """Send a numbered message and its reply; raise if bytes differ."""
        for _ in range(times):
            self._count += 1
            text = f"{self._count:08}".encode() * 20
            if self._udp:
                received, self.seen_from = datagram(self.server, partial(self.client.send, text))
                assert received == text
                received, _ = datagram(self.client, partial(self.server.sendto, text[::-1], self.seen_from))
                assert received == text[::-1]
            else:
                self.client.send(text)
                assert self._exactly(self.server, len(text)) == text
                self.server.sendall(text[::-1])
                assert self._exactly(self.client, len(text)) == text[::-1]

    def passes(self) -> bool:
        """Return whether what the client sends now arrives; TCP repeats what was lost."""
        self.client.send(b"x")
        self.server.settimeout(0.5)
        try:
            return bool(self.server.recv(1000))
        except TimeoutError:
            return False
        finally:
            self.server.settimeout(PATIENCE)

    def forget(self) -> None:
        """Leave what has come to the server unread."""
        self.server.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.server.recv(2000)
        self.server.settimeout(PATIENCE)

    @staticmethod
    def _exactly(sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            assert more, "the connection ended"
            data += more
        return data

    def close(self) -> None:
        """Close all sockets."""
        for each in (self.client, self.server, self._listener):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def two_containers_and_an_uplink(host: ThrowawayHost) -> None:
    """Build a bridge br0 with containers a and b, and a masqueraded uplink up0.

    br0 is 10.9.0.1/24, fd09::1/64; up0 leads to `world`.
    """
    host.run("ip link add br0 address 02:00:00:00:09:01 type bridge")  # else its ports decide
    host.run("ip addr add 10.9.0.1/24 dev br0")
    host.run("ip -6 addr add fd09::1/64 dev br0 nodad")
    host.run("ip link set br0 up")
    for number, name in enumerate(("a", "b"), 2):
        host.container(name, "br0", f"10.9.0.{number}/24", "10.9.0.1")
        host.run(f"ip -6 addr add fd09::{number}/64 dev eth0 nodad", inside=name)
        host.run("ip -6 route add default via fd09::1", inside=name)
    world = host.namespace("world")
    host.run(f"ip link add up0 type veth peer name eth0 netns {world}")
    host.run("ip addr add 192.0.2.1/24 dev up0")
    host.run("ip -6 addr add 2001:db8::1/64 dev up0 nodad")
    host.run("ip link set up0 up")
    host.run("ip addr add 192.0.2.2/24 dev eth0", inside="world")
    host.run("ip -6 addr add 2001:db8::2/64 dev eth0 nodad", inside="world")
    host.run("ip link set eth0 up", inside="world")
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    host.run("nft add table inet nat")
    host.run(["nft", "add chain inet nat post { type nat hook postrouting priority 100; }"])
    host.run("nft add rule inet nat post oifname up0 masquerade")
