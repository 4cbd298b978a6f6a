"""Send the probes of the lab's faults, and read the lab's state with the system's own tools."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from core.lab import Lab
from core.lab.blueprint import CONTAINERS
from core.lab.faults import HOST, Probe
from tests.support.waiting import PATIENCE

PLACES = (HOST, *(one.name for one in CONTAINERS if one.own_netns))
_TCP = """
import socket, sys
address, port, size, origin, patience = sys.argv[1:]
host, _, own_port = origin.rpartition(" ")
source = (host, int(own_port)) if host else None
with socket.create_connection((address, int(port)), float(patience), source) as peer:
    peer.sendall(b"GET /%d HTTP/1.1\\r\\n\\r\\n" % int(size))
    answer = b""
    while len(answer.partition(b"\\r\\n\\r\\n")[2]) < int(size):
        data = peer.recv(65536)
        if not data:
            sys.exit(1)
        answer += data
"""
_UDP = """
import socket, sys
address, port, size, origin, patience = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as peer:
    peer.settimeout(float(patience))
    host, _, own_port = origin.rpartition(" ")
    if host:
        peer.bind((host, int(own_port)))
    peer.connect((address, int(port)))
    peer.send(bytes(int(size)))
    peer.recv(2048)
"""
# A sidecar has no named namespace: its process is found by its command line.
_ENTER = """
import os, sys
command, argv = sys.argv[1], sys.argv[2:]
for pid in filter(str.isdigit, os.listdir("/proc")):
    words = open(f"/proc/{pid}/cmdline").read().replace(chr(0), " ").strip()
    if words == command:
        os.execvp("nsenter", ["nsenter", "-t", pid, "-n", *argv])
sys.exit(f"no process is {command}")
"""


def run_in_lab(lab: Lab, *argv: str) -> tuple[int, str]:
    """Run a command on the lab's host; return its exit code and output."""
    process = lab.popen_inside(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def reaches(lab: Lab, probe: Probe, patience: float = 1.0) -> bool:
    """Send a probe once; return whether it was answered within `patience` seconds."""
    return run_in_lab(lab, *probe_command(probe, patience))[0] == 0


def probe_command(probe: Probe, patience: float = 1.0) -> list[str]:
    """Return the command for the lab's host that sends a probe once; it fails without an answer."""
    if probe.protocol == "icmp":
        bound = ["-I", probe.origin] if probe.origin else []
        argv = ["ping", "-q", "-c", "1", "-W", str(patience), "-s", str(probe.size), *bound, probe.address]
    else:
        program = _TCP if probe.protocol == "tcp" else _UDP
        origin = f"{probe.origin} {probe.origin_port}"
        words = [probe.address, str(probe.port), str(probe.size), origin, str(patience)]
        argv = [sys.executable, "-I", "-S", "-c", program, *words]
    return [*_enter(probe.source), *argv]


def _enter(place: str) -> Sequence[str]:
    if place == HOST:
        return ()
    container = next(one for one in CONTAINERS if one.name == place)
    if container.own_netns:
        return ("ip", "netns", "exec", place)
    return (sys.executable, "-I", "-S", "-c", _ENTER, container.command)


# Addresses, routes, permanent neighbours, rules, sysctls and bridge ports of the namespaces in argv.
_STATE = """
import json, os, subprocess, sys
COMMANDS = (
    "addr", "route show table all", "-6 route show table all", "rule", "-6 rule", "neigh show nud permanent",
)
SYSCTLS = "forward|rp_filter|ip_local|ttl|bridge-nf|arp_ignore|disable_ipv6"
PORT = ("ifname", "flags", "mtu", "master", "state", "isolated", "locked", "learning", "flood", "hairpin")
def out(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
home, state = os.open("/proc/self/ns/net", os.O_RDONLY), {}
for name in sys.argv[1:]:
    with open("/proc/self/ns/net" if name == "host" else f"/run/netns/{name}") as netns:
        os.setns(netns.fileno(), os.CLONE_NEWNET)
    for command in COMMANDS:
        state[f"{command} in {name}"] = out("ip", *command.split()).splitlines()
    state[f"rules in {name}"] = out("nft", "list", "ruleset").splitlines()
    state[f"sysctls in {name}"] = out("sysctl", "-a", "-r", SYSCTLS).splitlines()
    os.setns(home, os.CLONE_NEWNET)
ports = json.loads(out("bridge", "-j", "-d", "link"))
state["ports"] = [str({key: port.get(key) for key in PORT}) for port in ports]
state["static fdb entries"] = [line for line in out("bridge", "fdb").splitlines() if "static" in line]
print(json.dumps(state))
"""
# What changes by itself: counters, indexes, carrier and operational state, link-local addresses.
_CHANGING = re.compile(
    r"packets \d+ bytes \d+|NO-CARRIER,|,LOWER_UP| qdisc .*$|^\d+: |@if\d+|"
    r"link-netnsid \d+|^.*(fe80|ff00::|anycast|valid_lft|link/ether).*$"
)


def lab_state(lab: Lab, places: Sequence[str] = PLACES) -> dict[str, list[str]]:
    """Return links, addresses, routes, rules and sysctls of these namespaces, and bridge ports.

    The lines of each list are sorted.
    """
    code, output = run_in_lab(lab, sys.executable, "-I", "-S", "-c", _STATE, *places)
    assert code == 0, output
    return {
        name: sorted(filter(None, (_CHANGING.sub("", line).strip() for line in lines)))
        for name, lines in json.loads(output).items()
    }
