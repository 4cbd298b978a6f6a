"""Two small programs for traffic: a server on TCP port 80 that tells callers their address, and a caller."""

from __future__ import annotations

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
