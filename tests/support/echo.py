"""Run a TCP server on port 80 that returns the caller's address, and a client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.machine import Machine
from tests.support.waiting import eventually

SERVE = (
    "import socket\n"
    "s = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    c, a = s.accept(); c.sendall(a[0].removeprefix('::ffff:').encode()); c.close()\n"
)
ASK = (
    "import socket, sys\n"
    "c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)\n"
    "print(c.recv(99).decode())\n"
)


def ask(machine: Machine, address: str, port: int, inside: str = "", program: str = ASK) -> str:
    """Run the client once; return the server's answer, "" for none."""
    return machine.run([sys.executable, "-c", program, address, str(port)], inside, check=False).strip()


def answer(machine: Machine, address: str, port: int, inside: str = "", program: str = ASK) -> str:
    """Run the client until there is an answer: the first packet may wait for a MAC."""
    return str(eventually(lambda: ask(machine, address, port, inside, program)))


@contextmanager
def serving(machine: Machine, inside: str, program: str = SERVE) -> Iterator[None]:
    """Run a server while the block lasts, by default the one on TCP port 80."""
    words = machine.words("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", program, inside=inside)
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout and server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.communicate()
