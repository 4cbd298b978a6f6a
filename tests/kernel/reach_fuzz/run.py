"""Build a case in namespaces of its own, ask `why`, send the probes, and compare."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.collect.snapshot import read_snapshot
from core.netlink.netns import entered
from core.reach import Answer, Endpoint, Question, why
from core.topology import Topology
from tests.kernel.reach_fuzz.cases import HOST, Case, Probe, Server, make

_FIRST, _AGAIN = 0.4, 1.5  # seconds that a probe waits; a second time if the answers differ
_NO_PROPAGATION = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
_PKTINFO = struct.Struct("=i4s4s")
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IP_PKTINFO, _IP_FREEBIND = 49, 50, 8, 15


@dataclass(slots=True)
class Compared:
    """One probe: the static verdict, and whether it was answered."""

    probe: str
    verdict: str
    answered: bool
    sentence: str
    hops: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Return whether both answers are the same; an unknown verdict agrees with both."""
        return self.verdict == "unknown" or (self.verdict in ("pass", "warn")) == self.answered


def in_child(seed: int, number: int) -> dict[str, object]:
    """Run a case in a process and namespaces of its own; return its result."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        code = 1
        with contextlib.suppress(KeyboardInterrupt):
            _isolate()
            os.write(writing, b"")
            with os.fdopen(writing, "w") as pipe:
                json.dump(run(make(seed, number)), pipe)
            code = 0
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"number": number, "error": "the case ended without a result"}


def _isolate() -> None:
    """Enter new namespaces of networks and mounts."""
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"none", b"/", None, _NO_PROPAGATION, None)
    if libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "can't mount /run")
    Path("/run/netns").mkdir()


def run(case: Case) -> dict[str, object]:
    """Build a case, ask and probe; return everything that a report needs."""
    failed = [*_shell(case.commands), *_shell(case.faults)]
    threading.Thread(target=_serve, args=([_listen(one) for one in case.servers],), daemon=True).start()
    topology = Topology(read_snapshot())
    answers = [ask(topology, probe) for probe in case.probes]
    answered = send(case.probes, _FIRST)
    found = [
        Compared(str(probe), answer.verdict, got, answer.sentence, _hops(answer))
        for probe, answer, got in zip(case.probes, answers, answered, strict=True)
    ]
    for number, one in enumerate(found):
        if not one.agrees and not one.answered:
            (one.answered,) = send([case.probes[number]], _AGAIN)
    return {
        "number": case.number,
        "failed": failed,
        "compared": [asdict(one) | {"agrees": one.agrees} for one in found],
    }


def _shell(commands: list[str]) -> list[str]:
    """Run commands; return those that this kernel refuses."""
    script = "".join(
        f"{one}\n[ $? = 0 ] || echo FAILED {number} >&2\n" for number, one in enumerate(commands)
    )
    done = subprocess.run(["sh", "-s"], input=script, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("FAILED ")]
    return [commands[int(line.split()[1])] for line in lines]


@contextlib.contextmanager
def _in(place: str) -> Iterator[None]:
    if place == HOST:
        yield
    else:
        with entered(f"/run/netns/{place}"):
            yield


def _listen(server: Server) -> socket.socket:
    """Open a server's socket; an address that doesn't exist is bound all the same."""
    ipv6 = not server.address or ":" in server.address
    with _in(server.place):
        kind = socket.SOCK_STREAM if server.protocol == "tcp" else socket.SOCK_DGRAM
        opened = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if kind == socket.SOCK_DGRAM:
        opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        if ipv6:
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    opened.bind((server.address or "::", server.port))
    if kind == socket.SOCK_STREAM:
        opened.listen(64)
    opened.setblocking(False)
    return opened


def _serve(servers: list[socket.socket]) -> None:
    """Accept connections, and echo datagrams from the address that was asked."""
    while True:
        ready, _, _ = select.select(servers, [], [])
        for one in ready:
            with contextlib.suppress(OSError):
                if one.type == socket.SOCK_STREAM:
                    one.accept()[0].close()
                else:
                    _echo(one)


def _echo(server: socket.socket) -> None:
    data, control, _, peer = server.recvmsg(2048, 256)
    is_ipv6 = ":" in peer[0] and not peer[0].startswith("::ffff:")
    answer = []
    for level, kind, value in control:
        if (level, kind, is_ipv6) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO, True):
            answer = [(level, kind, value[:16] + bytes(4))]
        elif (level, kind, is_ipv6) == (socket.IPPROTO_IP, _IP_PKTINFO, False):
            _, _, address = _PKTINFO.unpack(value)
            answer = [(level, kind, _PKTINFO.pack(0, address, bytes(4)))]
    server.sendmsg([data], answer, 0, peer)


def ask(topology: Topology, probe: Probe) -> Answer:
    """Ask whether a probe is answered."""
    source = _namespace(topology, probe.source)
    ns = next(
        (
            ns
            for ns, net in topology.snapshot.nets.items()
            if any(one.address == probe.address for link in net.links.values() for one in link.addresses)
        ),
        None,
    )
    target = Endpoint(topology.label(ns) if ns else probe.address, ns, probe.address)
    return why(topology, Question(Endpoint(probe.source, source), target, probe.protocol, probe.port))


def _namespace(topology: Topology, name: str) -> int:
    if name == HOST:
        return topology.host
    return next(ns for ns, one in topology.snapshot.namespaces.items() if name in one.names)


def _hops(answer: Answer) -> list[str]:
    hops = [*answer.there, None, *answer.back]
    return [
        f"{one.place}: {one.kind}: {one.text} [{one.verdict}] {'; '.join(one.evidence)}" if one else "--"
        for one in hops
    ]


def send(probes: list[Probe], patience: float) -> list[bool]:
    """Send all probes at once; return which were answered in time."""
    sockets = [_probe(one) for one in probes]
    waiting = {one.fileno(): number for number, one in enumerate(sockets) if one is not None}
    answered = [False] * len(probes)
    deadline = time.monotonic() + patience
    while waiting and (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for handle, number in waiting.items():
            poll.register(handle, select.POLLOUT if probes[number].protocol == "tcp" else select.POLLIN)
        for handle, _ in poll.poll(left * 1000):
            number = waiting[handle]
            result = _result(probes[number], sockets[number])
            if result is not None:
                answered[number] = result
                del waiting[handle]
    for one in sockets:
        if one is not None:
            one.close()
    return answered


def _probe(probe: Probe) -> socket.socket | None:
    """Send a probe; None if the kernel refuses to."""
    ipv6 = ":" in probe.address
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with _in(probe.source):
        if probe.protocol == "icmp":
            own = socket.socket(family, socket.SOCK_RAW, 58 if ipv6 else 1)
        else:
            own = socket.socket(family, socket.SOCK_STREAM if probe.protocol == "tcp" else socket.SOCK_DGRAM)
    own.setblocking(False)
    try:
        if probe.protocol == "icmp":
            own.connect((probe.address, 0))
            own.send(_echo_request(ipv6, own.fileno()))
        else:
            own.connect((probe.address, probe.port))
            if probe.protocol == "udp":
                own.send(b"probe")
    except BlockingIOError:
        return own
    except OSError:
        own.close()
        return None
    return own


def _echo_request(ipv6: bool, ident: int) -> bytes:
    body = struct.pack("!BBHHH", 128 if ipv6 else 8, 0, 0, ident, 1) + bytes(8)
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return body[:2] + struct.pack("!H", checksum) + body[4:]


def _result(probe: Probe, own: socket.socket | None) -> bool | None:
    """Return whether a probe was answered, None for something else."""
    assert own is not None
    if probe.protocol == "tcp":
        return own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    try:
        data = own.recv(2048)
    except OSError:
        return False
    if probe.protocol == "udp":
        return True
    packet = data if ":" in probe.address else data[(data[0] & 15) * 4 :]
    kind, _, _, ident = struct.unpack_from("!BBHH", packet)
    is_answer = kind == (129 if ":" in probe.address else 0) and ident == own.fileno()
    return True if is_answer else None


def main() -> None:
    """Run cases; print a line of JSON each."""
    seed, first, count, step = map(int, sys.argv[1:])
    for number in range(first, count, step):
        print(json.dumps(in_child(seed, number)), flush=True)
