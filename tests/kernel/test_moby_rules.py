"""Rule sets in the documents of Docker's own tests: views agree with traffic.

The documents are in VNET_MOBY_RULES: the folders iptablesdoc and nftablesdoc of moby's integration tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.echo import SERVE, answer, ask, serving
from tests.support.machine import Machine, read_json

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("VNET_MOBY_RULES") or ROOT.parent / "shared/data/moby-rules")
# Swarm networks need more than bridges.
DOCUMENTS = [path for path in sorted(FOLDER.glob("*doc/*.md")) if "swarm" not in path.name]
SUBNETS = {"docker0": "172.17.0", "bridge1": "192.0.2", "bridgeICC": "192.0.2", "bridgeNoICC": "198.51.100"}
HOST, WORLD = "10.77.0.1", "10.77.0.2"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not DOCUMENTS, reason=f"no documents of moby's rules in {FOLDER} (VNET_MOBY_RULES)"),
]


def load(machine: Machine, document: Path) -> list[str]:
    """Create the bridges in a document's rules, load the rules, return the bridges."""
    rules = _rules(document.read_text())
    bridges = [name for name in SUBNETS if re.search(rf"\b{name}\b", rules)]
    for name in bridges:
        machine.run(f"ip link add {name} type bridge")
        machine.run(f"ip addr add {SUBNETS[name]}.1/24 dev {name}")
        machine.run(f"ip link set {name} up")
    tool = "nft -f -" if document.parent.name == "nftablesdoc" else "iptables-restore"
    machine.run(tool, text=rules)
    return bridges


def _rules(text: str) -> str:
    """Return the rules in a document, which are indented.

    One nft table, or one part for each table of iptables.
    """
    if table := re.search(r"^    table ip docker-bridges \{\n.*?^    \}\n", text, re.MULTILINE | re.DOTALL):
        return table[0]
    blocks = re.findall(r"(?:^    -[PNA] .*\n)+", text, re.MULTILINE)
    return "".join(_restored([line.strip() for line in block.splitlines()]) for block in blocks)


def _restored(commands: list[str]) -> str:
    """Convert one table's commands to iptables-restore input.

    Its chains show which table it is.
    """
    chains = {one.split()[1] for one in commands if one.startswith("-P")}
    table = "nat" if "POSTROUTING" in chains else "raw" if "PREROUTING" in chains else "filter"
    policies = [re.sub(r"^-P (\S+) (\S+)", r":\1 \2 [0:0]", one) for one in commands if one.startswith("-P")]
    made = [re.sub(r"^-N (\S+)", r":\1 - [0:0]", one) for one in commands if one.startswith("-N")]
    rules = [one for one in commands if one.startswith("-A")]
    return "\n".join([f"*{table}", *policies, *made, *rules, "COMMIT", ""])


def container(machine: Machine, name: str, bridge: str, address: str) -> None:
    """Create a namespace on a bridge."""
    machine.run(f"ip netns add {name}")
    machine.run(f"ip link add v-{name} type veth peer name eth0 netns {name}")
    if bridge:
        machine.run(f"ip link set v-{name} master {bridge}")
    machine.run(f"ip link set v-{name} up")
    machine.run(f"ip addr add {address}/24 dev eth0", name)
    machine.run("ip link set eth0 up", name)
    machine.run(f"ip route add default via {address.rpartition('.')[0]}.1", name)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Machine]:
    """A machine with the world behind it."""
    machine = Machine()
    try:
        machine.run("sysctl -qw net.ipv4.ip_forward=1")
        container(machine, "world", "", WORLD)
        machine.run(f"ip addr add {HOST}/24 dev v-world")
        yield machine
    finally:
        machine.close()


def published(entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return the addresses ("*" for all) and ports of published ports."""
    ends = [one["outside"].rpartition(":") for one in entries if one["kind"] == "published port"]
    return {(host, port) for host, _, port in ends}


def named(found: list[dict[str, Any]], bridge: str) -> dict[str, Any]:
    return next(one for one in found if one["bridge"] == bridge)


@pytest.mark.parametrize(
    "document", DOCUMENTS or [FOLDER], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_views_agree_with_traffic(site: Machine, document: Path) -> None:
    bridges = load(site, document)
    with ExitStack() as servers:
        servers.enter_context(serving(site, "world", SERVE))
        for number, bridge in enumerate(bridges):
            container(site, f"c{number}", bridge, f"{SUBNETS[bridge]}.2")
            servers.enter_context(serving(site, f"c{number}", SERVE))
        networks = read_json(site, "show networks")["networks"]
        ways_in = published(read_json(site, "show nat")["nat"])
        for number, bridge in enumerate(bridges):
            address, kind = f"{SUBNETS[bridge]}.2", named(networks, bridge)["kind"]
            seen_as = {"nat": HOST, "routed": address, "internal": ""}[kind]
            seen = answer(site, WORLD, 80, f"c{number}") if seen_as else ask(site, WORLD, 80, f"c{number}")
            assert seen == seen_as, f"{bridge} is shown as {kind}"
        for port in {"8080", *(port for _, port in ways_in)}:
            is_open = any(to == port and host == "*" for host, to in ways_in)
            assert bool(ask(site, HOST, int(port), "world")) == is_open, ways_in
