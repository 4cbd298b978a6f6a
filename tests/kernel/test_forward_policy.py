"""After the commands printed for other programs' drop rules, packets pass.

Each rule set is as its program writes it (tests/support/rules); no engine and no such program runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.echo import ASK
from tests.support.machine import Machine, ok, read_json, uplink
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

RULES = Path(__file__).parents[1] / "support/rules"
SERVE = (
    "import select, socket\n"
    "all = [socket.create_server(('::', p), family=socket.AF_INET6, dualstack_ipv6=True) for p in (80, 81)]\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    for s in select.select(all, [], [])[0]:\n"
    "        c, a = s.accept(); c.sendall(a[0].removeprefix('::ffff:').encode()); c.close()\n"
)
FIREWALLD = [
    "firewall-cmd --permanent --new-zone=br-shop",
    "firewall-cmd --permanent --zone=br-shop --add-interface=br-shop",
    "firewall-cmd --permanent --new-policy=br-shop-out",
    "firewall-cmd --permanent --policy=br-shop-out --add-ingress-zone=br-shop",
    "firewall-cmd --permanent --policy=br-shop-out --add-egress-zone=ANY",
    "firewall-cmd --permanent --policy=br-shop-out --set-target=ACCEPT",
    "firewall-cmd --reload",
]


@dataclass(frozen=True)
class RuleSet:
    """A rule set: its files and commands, and whose rules drop which packets."""

    files: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    on_docker0: str = ""
    on_shop: str = ""
    program: str = ""


RULE_SETS = {
    "docker 20.10": RuleSet(("docker-20.10.ip4",), (), "Docker's rules drop", "Docker's rules drop"),
    "docker 28": RuleSet(("docker-28.ip4",), (), "Docker's rules drop", ""),
    "docker 28, policy drop": RuleSet(
        ("docker-28.ip4",), ("iptables -P FORWARD DROP",), "Docker's rules drop", "Docker's rules drop"
    ),
    "docker 29": RuleSet(("docker-29.nft",), (), "Docker's rules drop", ""),
    "ufw": RuleSet(("ufw.ip4", "ufw.ip6"), (), "ufw's rules drop", "ufw's rules drop", "ufw"),
    "docker 28 and ufw": RuleSet(
        ("docker-28.ip4", "ufw.ip4", "ufw.ip6"), (), "Docker's rules drop", "ufw's rules drop", "ufw"
    ),
    "firewalld": RuleSet(("firewalld.nft",), (), "", "firewalld's rules drop", "firewalld"),
    "own tables": RuleSet(
        (),
        (
            "nft add table inet one; "
            "add chain inet one f { type filter hook forward priority 5; policy drop; }",
            "nft add table ip two; add chain ip two f { type filter hook forward priority -5; }; "
            "add rule ip two f ct state established accept; add rule ip two f reject",
        ),
        "table one drops",
        "table one drops",
    ),
    "raw": RuleSet(
        (), ("iptables -t raw -A PREROUTING -i up0 -p tcp --dport 7080 -j DROP",), "table raw drops", ""
    ),
}


class Site:
    """Hold a machine with docker0, containers a and b, and the world at its uplink."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def load(self, rule_set: RuleSet) -> None:
        for file in rule_set.files:
            text = (RULES / file).read_text()
            if file.endswith(".nft"):
                self.machine.run(["nft", "-f", "-"], text=text)
            else:
                tool = "ip6tables-restore" if file.endswith("ip6") else "iptables-restore"
                self.machine.run([tool, "--noflush"], text=text)
        for command in rule_set.commands:
            self.machine.run(["nft", command[4:]] if command.startswith("nft ") else command)

    def ask(self, client: str, address: str, port: int) -> bool:
        words = [sys.executable, "-c", ASK, address, str(port)]
        return bool(self.machine.run(words, client, check=False).strip())

    def answered(self, *ways: tuple[str, str, int]) -> list[bool]:
        """Return which of these (client, address, port) are answered, asked at once."""
        with ThreadPoolExecutor(len(ways)) as pool:
            return list(pool.map(lambda way: self.ask(*way), ways))

    def all_answered(self, *ways: tuple[str, str, int]) -> bool:
        return bool(eventually(lambda: all(self.answered(*ways))))

    def warnings(self, *words: str) -> list[str]:
        done = self.machine.vnet(*words, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)["warnings"]
        return found

    def follow(self, sentences: list[str]) -> list[str]:
        """Run all commands in the sentences."""
        run = [command for one in sentences for command in commands(one)]
        if any(one.startswith("firewall-cmd") for one in run):
            assert run == FIREWALLD
            self.machine.run("nft delete table inet firewalld")
            self.load(RuleSet(("firewalld-policy.nft",)))
            return run
        for command in run:
            self.machine.run(["sh", "-c", command])
        return run

    def findings(self, kind: str) -> list[dict[str, Any]]:
        found = read_json(self.machine, "show all")["findings"]
        return [one for one in found if one["kind"] == kind]

    def forward_findings(self) -> list[dict[str, Any]]:
        """Return findings on networks and published ports, not those on single paths."""
        shorts = ("no outside access", "unreachable")
        return [one for one in self.findings("forward") if one["short"] in shorts]


def commands(sentence: str) -> list[str]:
    """Return the commands in a warning or a finding."""
    _, found, after = sentence.partition("to allow it, run")
    return after.partition(": ")[2].split("; ") if found else []


@pytest.fixture
def site() -> Iterator[Site]:
    machine = Machine()
    with ExitStack() as ends:
        ends.callback(machine.close)
        uplink(machine)
        machine.run("sysctl -qw net.ipv4.ip_forward=1")
        machine.run("ip link add docker0 type bridge")
        machine.run("ip addr add 172.17.0.1/16 dev docker0")
        machine.run("ip link set docker0 up")
        # The world has a route to the containers' addresses: unpublished ports must stay closed.
        machine.run("ip route add 172.17.0.0/16 via 192.0.2.2", inside="world")
        for name, number in (("a", 2), ("b", 4)):
            machine.run(f"ip netns add {name}")
            machine.run(f"ip link add v-{name} type veth peer name eth0 netns {name}")
            machine.run(f"ip link set v-{name} master docker0 up")
            machine.run(f"ip addr add 172.17.0.{number}/16 dev eth0", inside=name)
            machine.run("ip link set eth0 up", inside=name)
            machine.run("ip link set lo up", inside=name)
            machine.run("ip route add default via 172.17.0.1", inside=name)
        for name in ("a", "b", "world"):
            serve(machine, name, ends)
        yield Site(machine)


def serve(machine: Machine, name: str, ends: ExitStack) -> None:
    words = machine.words("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", SERVE, inside=name)
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    ends.callback(server.communicate)
    ends.callback(server.kill)
    assert server.stdout and server.stdout.readline() == "ready\n"


@pytest.mark.parametrize("name", [name for name in RULE_SETS if RULE_SETS[name].on_docker0])
def test_a_port_of_a_container_on_an_engines_bridge(site: Site, name: str) -> None:
    """After the printed commands the port is reachable from outside.

    Unpublished ports stay closed: the container's own address, its other port, and its neighbour.
    """
    rule_set = RULE_SETS[name]
    site.load(rule_set)
    from_outside = ("world", "192.0.2.2", 7080)
    closed = (("world", "172.17.0.2", 80), ("world", "172.17.0.2", 81), ("world", "172.17.0.4", 80))
    said = [one for one in site.warnings("publish", "a", "7080:80") if commands(one)]
    assert said and rule_set.on_docker0 in said[0]
    assert all("IPv6" not in one for one in said)
    ok(site.machine, "publish a 7080:80")
    assert site.all_answered(("", "192.0.2.2", 7080)), "the host itself reaches it"
    assert not site.ask(*from_outside)
    run = site.follow(said)
    assert site.all_answered(from_outside), run
    assert not name.startswith("docker") or not any(site.answered(*closed)), run
    left = site.warnings("publish", "a", "7081:80")
    assert not [one for one in left if commands(one)], "nothing is left to say"


@pytest.mark.parametrize(
    "name", [name for name in RULE_SETS if RULE_SETS[name].on_shop or name == "docker 28"]
)
def test_a_network_created_by_vnet(site: Site, name: str) -> None:
    """After all printed commands, outgoing and published connections work.

    After half of them the finding remains. Unpublished ports stay closed.
    """
    rule_set, machine = RULE_SETS[name], site.machine
    site.load(rule_set)
    create = ("network", "create", "shop", "--subnet", "10.91.0.0/24")
    said = [one for one in site.warnings(*create) if commands(one)]
    assert bool(said) == bool(rule_set.on_shop) and all(rule_set.on_shop in one for one in said[:1]), said
    ok(machine, " ".join(create))
    ok(machine, "container create c --network shop")
    machine.run("ip route add 10.91.0.0/24 via 192.0.2.2", inside="world")
    out, in_ = ("c", "192.0.2.1", 80), ("world", "192.0.2.2", 8090)
    assert len(site.forward_findings()) == len(said)
    assert not said or not site.ask(*out)
    for command in [command for one in site.forward_findings() for command in commands(one["advice"])][:-1]:
        if not command.startswith("firewall-cmd"):
            site.follow([f"to allow it, run: {command}"])
            assert not site.ask(*out) and site.forward_findings(), "half of it is not enough"
    site.follow([one["advice"] for one in site.forward_findings()])
    assert site.all_answered(out)
    ok(machine, "publish c 8090:80")
    with ExitStack() as ends:
        serve(machine, "c", ends)
        more = [one["advice"] for one in site.forward_findings()]
        site.follow(more)
        assert site.all_answered(in_, ("", "127.0.0.1", 8090)), more
        assert not site.forward_findings()
        bypassing = site.findings("bypass")
        assert [one["short"] for one in bypassing] == [f"bypasses {one}" for one in [rule_set.program] if one]
        for finding in bypassing:
            restrict = finding["advice"].partition(", run: ")[2]
            assert "tcp/8090" in finding["sentence"]
            restrict = re.sub("80[89][01]", "8090", restrict)
            said = " ".join(site.warnings("publish", "c", "8091:80"))
            assert f"{rule_set.program}'s rules" in said and restrict.replace("8090", "8091") in said
            machine.run(["sh", "-c", restrict.replace("NETWORK", "198.51.100.0/24")])
            assert not site.ask(*in_)
        assert not any(site.answered(("world", "10.91.0.2", 80), ("world", "10.91.0.2", 81)))


def test_ufw_that_is_disabled_drops_nothing(site: Site) -> None:
    """`ufw disable` leaves empty chains, the jumps to them, and policies that accept."""
    machine = site.machine
    site.load(RULE_SETS["ufw"])
    ok(machine, "publish a 7080:80")
    assert [one["short"] for one in site.findings("forward")] == ["unreachable"]
    for tool in ("iptables", "ip6tables"):
        lines = machine.run(f"{tool}-save -t filter").splitlines()
        chains = [line[1:].split()[0] for line in lines if line.startswith(":ufw")]
        machine.run(["sh", "-c", "; ".join(f"{tool} -F {chain}" for chain in chains)])
        machine.run(["sh", "-c", f"for c in INPUT OUTPUT FORWARD; do {tool} -P $c ACCEPT; done"])
    assert not site.findings("bypass") and not site.findings("forward")
    assert not [one for one in site.warnings("publish", "a", "7081:80") if "ufw" in one]


def test_each_command_has_its_own_line(site: Site) -> None:
    """Commands can be copied line by line; in JSON they are in the sentence."""
    site.load(RULE_SETS["own tables"])
    words = ("network", "create", "shop", "--subnet", "10.91.0.0/24")
    expected = [command for one in site.warnings(*words) for command in commands(one)]
    printed = site.machine.vnet(*words, "--dry-run").stderr.splitlines()
    assert len(expected) > 2
    assert [line.strip() for line in printed if line.startswith("    ")] == expected


def test_an_ipv6_network(site: Site) -> None:
    """IPv6 commands use ip6tables, and allow the same packets as those of IPv4."""
    machine = site.machine
    for inside, link, number in (("", "up0", 2), ("world", "far", 1)):
        machine.run(f"ip addr add 2001:db8:2::{number}/64 dev {link} nodad", inside=inside)
    machine.run("ip route add default via 2001:db8:2::1")
    machine.run("ip route add fd91::/64 via 2001:db8:2::2", inside="world")
    site.load(RULE_SETS["ufw"])
    said = site.warnings("network", "create", "shop", "--subnet", "fd91::/64")
    ok(machine, "network create shop --subnet fd91::/64")
    ok(machine, "container create c --network shop")
    assert not site.ask("c", "2001:db8:2::1", 80)
    run = site.follow([one for one in said if commands(one)])
    assert run and all(one.startswith("ip6tables ") for one in run)
    assert site.all_answered(("c", "2001:db8:2::1", 80))
    with ExitStack() as ends:
        serve(machine, "c", ends)
        site.follow([one for one in site.warnings("publish", "c", "8090:80") if commands(one)])
        ok(machine, "publish c 8090:80")
        assert site.all_answered(("world", "2001:db8:2::2", 8090))
        assert not site.ask("world", "fd91::2", 80)
