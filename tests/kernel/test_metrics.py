"""Check the agent's metrics over HTTP against ip(8), nft(8) and conntrack(8)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.machine import PROGRAM, Machine, ok, refused
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root

ADDRESS = "127.0.0.1:9742"
FETCH = (
    f"import urllib.request as r; print(r.urlopen('http://{ADDRESS}/metrics', timeout=60).read().decode())"
)
RULES = """
table inet t {
  chain forward { type filter hook forward priority -10; ip daddr 198.51.100.0/24 counter drop; }
  chain out { type filter hook output priority 0; ct state new counter; }
}
"""

type Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


class Agent:
    """`vnet-tui agent --metrics` on a machine; its output goes to a file."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.output = machine.folder / "output"
        command = machine.words("setpriv", "--pdeathsig", "TERM", *PROGRAM, "agent", "--metrics", ADDRESS)
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=machine.environment
            )

    def scrape(self) -> Samples:
        found: Samples = {}
        for family in text_string_to_metric_families(self.machine.run([sys.executable, "-c", FETCH])):
            for one in family.samples:
                found.setdefault(one.name, {})[frozenset(one.labels.items())] = one.value
        return found

    def until(self, so: Callable[[Samples], object]) -> Samples:
        """Scrape until a condition holds; scrapes within a second share their result."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                found = self.scrape()
                if so(found):
                    return found
            except AssertionError:
                assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.1)

    def close(self) -> int:
        """End it as systemd does; return its exit code, which nsenter forwards."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGTERM)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Create a host with a network, a container, rules with counters, and connections."""
    made = Machine()
    try:
        ok(made, "network create shop --subnet 10.91.0.0/24")
        ok(made, "container create web --network shop")
        made.run(["nft", RULES])
        made.run("ip route add 198.51.100.0/24 dev br-shop")
        made.run("ping -q -c 3 -i 0.1 10.91.0.2")
        made.run("ping -q -c 2 -i 0.1 -W 1 198.51.100.7", inside="web", check=False)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def agent(machine: Machine) -> Iterator[Agent]:
    made = Agent(machine)
    try:
        made.until(lambda found: found.get("vnet_link_up"))
        yield made
    finally:
        assert made.close() == 0


def of(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def next_scrape(agent: Agent) -> Samples:
    """Return a scrape that read the host after this call."""
    first = agent.scrape()["vnet_scrape_part_duration_seconds"]
    return agent.until(lambda found: found["vnet_scrape_part_duration_seconds"] != first)


@pytest.mark.parametrize("inside", ["", "web"])
def test_links_as_ip_counts_them(agent: Agent, inside: str) -> None:
    counters = {"bytes": "bytes", "packets": "packets", "errors": "errors", "drops": "dropped"}
    names = {
        f"vnet_link_{direction}_{name}_total": (short, counter)
        for direction, short in (("receive", "rx"), ("transmit", "tx"))
        for name, counter in counters.items()
    }
    before = {one["ifname"]: one for one in agent.machine.json("ip -j -s link", inside)}
    found = next_scrape(agent)
    after = {one["ifname"]: one for one in agent.machine.json("ip -j -s link", inside)}
    assert len(before) == (3 if not inside else 2)
    for name, link in after.items():
        labels = of(namespace=inside or "host", link=name)
        for metric, (direction, counter) in names.items():
            value = found[metric][labels]
            assert before[name]["stats64"][direction][counter] <= value <= link["stats64"][direction][counter]
        assert found["vnet_link_mtu_bytes"][labels] == link["mtu"]
        assert found["vnet_link_up"][labels] == ("LOWER_UP" in link["flags"] and "UP" in link["flags"])
    assert found["vnet_link_receive_bytes_total"][of(namespace="web", link="eth0")] > 0
    own = of(container="web", runtime="netns", link="eth0")
    assert (
        found["vnet_container_receive_bytes_total"][own]
        == found["vnet_link_receive_bytes_total"][of(namespace="web", link="eth0")]
    )


def test_conntrack_as_conntrack_counts_it(agent: Agent) -> None:
    for port in (1, 2, 3):
        agent.machine.run(f"conntrack -I -p udp -s 1.1.1.1 -d 2.2.2.2 --sport {port} --dport 9 -t 300")
    found = agent.until(lambda now: now["vnet_conntrack_inserts_total"][of(namespace="host")] >= 3)
    limit = int(agent.machine.run("sysctl -n net.netfilter.nf_conntrack_max"))
    assert found["vnet_conntrack_entries_limit"][of(namespace="host")] == limit
    agent.until(
        lambda now: all(
            now["vnet_conntrack_entries"][of(namespace=name or "host")]
            == int(agent.machine.run("conntrack -C", name))
            for name in ("", "web")
        )
    )
    inserted = sum(int(part.partition("=")[2]) for part in agent.machine.run("conntrack -S").split()
                   if part.startswith("insert="))  # fmt: skip
    assert found["vnet_conntrack_inserts_total"][of(namespace="host")] == inserted >= 3


def test_rules_as_nft_counts_them(agent: Agent) -> None:
    listed = json.loads(agent.machine.run("nft -j list chain inet t forward"))["nftables"]
    (rule,) = [one["rule"]["expr"] for one in listed if "rule" in one]
    (counter,) = [one["counter"] for one in rule if "counter" in one]
    found = agent.scrape()
    for metric, wanted in (("packets", counter["packets"]), ("bytes", counter["bytes"])):
        samples = found[f"vnet_filter_{metric}_total"].items()
        (value,) = [value for labels, value in samples if "198.51.100.0/24" in dict(labels)["name"]]
        assert value == wanted >= 1


def test_networks_and_containers(agent: Agent) -> None:
    found = agent.scrape()
    (members,) = [
        value for labels, value in found["vnet_network_containers"].items() if ("network", "shop") in labels
    ]
    assert members == 1
    (about,) = [dict(labels) for labels in found["vnet_container_info"] if ("container", "web") in labels]
    assert (about["model"], about["namespace"], about["runtime"]) == ("bridged", "web", "netns")
    ports = agent.machine.json("ip -j link show master br-shop")
    assert found["vnet_bridge_ports"][of(namespace="host", bridge="br-shop")] == len(ports) == 1
    assert found["vnet_fast_path_active"] == {frozenset(): 0}
    assert set(found["vnet_scrape_part_success"].values()) == {1}


def test_the_agent_survives_bad_requests(agent: Agent) -> None:
    cut_off = (
        "import socket\n"
        "for text in (b'GET /metrics HTTP/1.1\\r\\n\\r\\n', b'\\0' * 5000, b'POST / HTTP/9\\r\\n\\r\\n'):\n"
        "    with socket.create_connection(('127.0.0.1', 9742)) as one:\n"
        "        one.sendall(text)\n"
    )
    agent.machine.run([sys.executable, "-c", cut_off])
    good = agent.machine.run("nft -s list table inet vnet")
    agent.machine.run("nft delete table inet vnet")
    assert eventually(lambda: agent.machine.run("nft -s list table inet vnet", check=False) == good), (
        agent.output.read_text()
    )
    assert agent.scrape()["vnet_link_up"]


def test_it_is_off_by_default_and_errors_have_a_reason(agent: Agent) -> None:
    message = refused(agent.machine, "agent", "--metrics", ADDRESS)
    assert message == f"vnet-tui: can't serve metrics at {ADDRESS}: Address already in use\n"
    assert "HOST:PORT" in refused(agent.machine, "agent", "--metrics", "9742")
    unit = ok(agent.machine, "agent --unit --metrics [::1]:9742")
    assert "agent --metrics [::1]:9742\n" in unit and "AF_INET6" in unit
    assert "--metrics" not in ok(agent.machine, "agent --unit")
