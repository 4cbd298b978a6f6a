"""`vnet-tui diff`: differences made by ip, nft and sysctl between dumps and in recordings."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.recording import Recording
from core.serialize import CorruptFile
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, wait_until

from .test_recording import recording

pytestmark = pytest.mark.root


@pytest.fixture
def shop(host: ThrowawayHost) -> ThrowawayHost:
    """A host with two containers on a bridge, a default route and a base chain."""
    host.run("ip link add br-shop type bridge")
    host.run("ip addr add 10.20.0.1/24 dev br-shop")
    host.run("ip link set br-shop up")
    host.container("web", "br-shop", "10.20.0.2/24", gateway="10.20.0.1")
    host.container("db", "br-shop", "10.20.0.3/24", gateway="10.20.0.1")
    host.run("ip route add 192.0.2.0/24 via 10.20.0.2")
    host.run("sysctl -qw net.ipv4.ip_forward=1")
    for words in (
        "add table inet t",
        "add chain inet t forwarding { type filter hook forward priority 0; policy accept; }",
        "add set inet t blocked { type ipv4_addr; }",
        "add rule inet t forwarding tcp dport 80 accept", "add rule inet t forwarding tcp dport 443 accept",
    ):  # fmt: skip
        host.run(["nft", words])
    return host


class Dumps:
    """Dumps of a host, compared by the command."""

    def __init__(self, host: ThrowawayHost, folder: Path) -> None:
        self.host, self.folder = host, folder
        self.before = self.dump("before")

    def dump(self, name: str) -> Path:
        path = self.folder / f"{name}.vnet"
        done = self.host.vnet("dump", str(path))
        assert done.returncode == 0, done.stderr
        return path

    def differences(self) -> list[tuple[str, str]]:
        """Return (topic, sentence), without the random prefix of names, up to now."""
        done = self.host.vnet("diff", str(self.before), str(self.dump("after")), "--json")
        found = json.loads(done.stdout)["differences"]
        assert done.returncode == (1 if found else 0), done.stderr
        return [(one["topic"], one["sentence"].replace(f"{self.host.prefix}-", "")) for one in found]


@pytest.fixture
def dumps(shop: ThrowawayHost, tmp_path: Path) -> Dumps:
    return Dumps(shop, tmp_path)


def test_an_unchanged_host_has_no_difference(dumps: Dumps) -> None:
    dumps.host.run("ping -c1 -W5 10.20.0.2")  # learned neighbours, counters
    assert dumps.differences() == []
    done = dumps.host.vnet("diff", str(dumps.before), str(dumps.before))
    assert (done.returncode, done.stdout) == (0, "No difference.\n")


# What is changed, and the topic and sentence that must come first.
CHANGES: dict[str, tuple[str, str, str, str]] = {
    "link down": ("host", "ip link set v-web down", "state", "veth v-web in host was set down"),
    "port gone": ("host", "ip link set v-web nomaster", "state",
                  "veth v-web in host is no longer a port of br-shop"),
    "address": ("web", "ip addr del 10.20.0.2/24 dev eth0", "address",
                "veth eth0 in web lost the address 10.20.0.2/24"),
    "route": ("web", "ip route del default", "route",
              "route default via 10.20.0.1 dev eth0 is gone from web"),
    "kernel route": ("db", "ip route del 10.20.0.0/24", "route",
                     "route 10.20.0.0/24 dev eth0 is gone from db"),
    "blackhole": ("db", "ip route add blackhole 198.51.100.0/24", "route",
                  "route blackhole 198.51.100.0/24 appeared in db"),
    "policy rule": ("web", "ip rule add from 10.20.0.2 lookup 99", "policy rule",
                    "appeared in web"),
    "neighbour": ("web", "ip neigh replace 10.20.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
                  "neighbour", "permanent neighbour 10.20.0.1 on eth0 in web was added: 02:00:00:00:00:99"),
    "sysctl": ("host", "sysctl -qw net.ipv4.ip_forward=0", "sysctl",
               "net.ipv4.ip_forward changed from 1 to 0"),
    "rp_filter": ("web", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "sysctl",
                  "net.ipv4.conf.eth0.rp_filter in web changed from 0 to 1"),
    "forwarding of a namespace": ("db", "sysctl -qw net.ipv4.ip_forward=1", "sysctl",
                                  "net.ipv4.ip_forward in db changed from 0 to 1"),
    "element of a set": ("host", "nft add element inet t blocked { 10.20.0.2 }", "firewall",
                         "elements of set inet/t/blocked in host changed: +10.20.0.2"),
    "isolation": ("host", "bridge link set dev v-web isolated on", "bridge",
                  "isolated of port v-web of br-shop in host changed from off to on"),
    "snooping": ("host", "ip link set br-shop type bridge mcast_snooping 0", "bridge",
                 "mcast_snooping of bridge br-shop in host changed from on to off"),
    "stp": ("host", "ip link set br-shop type bridge stp_state 1", "bridge",
            "stp of bridge br-shop in host changed from off to on"),
    "drop rule": ("host", "nft insert rule inet t forwarding ip daddr 10.20.0.2 drop", "firewall",
                  "a rule was added to nft inet t forwarding in host: ip daddr 10.20.0.2 drop"),
    "policy": ("host", "nft chain inet t forwarding { policy drop; }", "firewall",
               "the policy of nft inet t forwarding in host changed from accept to drop"),
    "new chain": ("web", "nft add table ip x; add chain ip x in "
                  "{ type filter hook input priority 0; policy drop; }", "firewall",
                  "chain nft ip x in (filter hook input priority 0 policy drop) was added to web"),
    "flush": ("host", "nft flush chain inet t forwarding", "firewall",
              "a rule is gone from nft inet t forwarding in host: tcp dport 80 accept"),
    "nat": ("host", "nft add table ip n; add chain ip n pre { type nat hook prerouting priority -100; };"
            "add rule ip n pre tcp dport 8080 dnat to 10.20.0.2:80", "firewall", "chain nft ip n pre"),
    "mtu": ("web", "ip link set eth0 mtu 1400", "mtu",
            "the MTU of veth eth0 in web changed from 1500 to 1400"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_first(dumps: Dumps, name: str) -> None:
    inside, command, topic, sentence = CHANGES[name]
    words = ["nft", command.removeprefix("nft ")] if command.startswith("nft ") else command
    dumps.host.run(words, inside)
    found = dumps.differences()
    assert found and found[0][0] == topic, found
    assert sentence in found[0][1], found


def move_first_rule(host: ThrowawayHost) -> None:
    """Move the first rule of the chain to its end."""
    listed = host.json("nft -j list chain inet t forwarding")["nftables"]
    first = min(one["rule"]["handle"] for one in listed if "rule" in one)
    add = "add rule inet t forwarding tcp dport 80 accept"
    host.run(["nft", f"delete rule inet t forwarding handle {first}; {add}"])


def test_rules_in_another_order_are_a_difference(dumps: Dumps) -> None:
    move_first_rule(dumps.host)
    assert dumps.differences() == [
        ("firewall", "the rules of nft inet t forwarding in host are in another order: "
         "tcp dport 443 accept now comes before tcp dport 80 accept")
    ]  # fmt: skip


def test_suspects_come_in_order_of_likelihood(dumps: Dumps) -> None:
    for inside, command in (
        ("web", "ip link set eth0 mtu 1400"), ("host", "sysctl -qw net.ipv4.ip_forward=0"),
        ("web", "ip route del default"), ("db", "ip addr del 10.20.0.3/24 dev eth0"),
        ("host", "ip link set v-web down"), ("host", "ip link set br-shop alias storefront"),
    ):  # fmt: skip
        dumps.host.run(command, inside)
    topics = [topic for topic, _ in dumps.differences()]
    assert list(dict.fromkeys(topics)) == ["state", "address", "route", "sysctl", "mtu", "other"]


def test_what_was_created_again_under_the_same_names_is_no_difference(dumps: Dumps) -> None:
    host = dumps.host
    old = host.inode_of("web"), host.json("ip -j link show v-web")[0]["ifindex"]
    spare = host.full("spare")
    subprocess.run(["ip", "netns", "add", spare], check=True)  # so that the new inode is another one
    try:
        subprocess.run(["ip", "netns", "del", host.full("web")], check=True)
        wait_until(lambda: not [link for link in host.json("ip -j link") if link["ifname"] == "v-web"])
        host.names.remove(host.full("web"))
        host.container("web", "br-shop", "10.20.0.2/24", gateway="10.20.0.1")
        host.run("ip route replace 192.0.2.0/24 via 10.20.0.2")
        new = host.inode_of("web"), host.json("ip -j link show v-web")[0]["ifindex"]
        assert old != new
        wait_until(lambda: host.json("ip -j link show v-web")[0]["operstate"] == "UP")
    finally:
        subprocess.run(["ip", "netns", "del", spare], check=False)
    assert dumps.differences() == []


def test_now_is_compared_with_a_dump(dumps: Dumps) -> None:
    dumps.host.run("ip link set v-web down")
    done = dumps.host.vnet("diff", str(dumps.before))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "before.vnet of " in lines[0] and " -> now of " in lines[0]
    assert lines[2].split(maxsplit=1) == ["state", "veth v-web in host was set down"]
    quiet = dumps.host.vnet("diff", str(dumps.before), "now", "-q")
    assert quiet.returncode == 1 and quiet.stdout.endswith(f"{len(lines) - 2} differences.\n")


def test_a_bundle_is_compared_with_a_dump(dumps: Dumps) -> None:
    bundle = dumps.folder / "report.tar.gz"
    done = dumps.host.vnet("bundle", str(bundle), "--from", str(dumps.before))
    assert done.returncode == 0, done.stderr
    assert dumps.host.vnet("diff", str(bundle), str(dumps.before), "-q").returncode == 0


def test_another_hosts_dump_is_compared_by_names(dumps: Dumps) -> None:
    """All ids differ, and so does the host's name."""
    text = gzip.decompress(dumps.before.read_bytes()).decode()
    document = json.loads(text)["snapshot"]
    for inode in document["nets"]:
        text = text.replace(inode, f"77{inode}")
    text = text.replace(f'"hostname":"{document["host"]["hostname"]}"', '"hostname":"elsewhere"')
    other = dumps.folder / "other.vnet"
    other.write_bytes(gzip.compress(text.encode()))
    done = dumps.host.vnet("diff", str(other), str(dumps.before))
    print(done.stdout)
    # A process of another host of this machine has the same id on both: it can't be the same one.
    lines = [line for line in done.stdout.splitlines()[2:] if not re.search(r"\[\d+\] ", line + " ")]
    assert lines == [] and done.returncode == (done.stdout != "No difference.\n"), done.stdout
    assert "two hosts, elsewhere and" in done.stderr


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("something else")


@pytest.mark.parametrize("write", [_empty, _text, None], ids=["empty", "text", "missing"])
def test_a_bad_file_is_a_sentence(
    host: ThrowawayHost, tmp_path: Path, write: Callable[[Path], None] | None
) -> None:
    path = tmp_path / "bad.vnet"
    if write:
        write(path)
    done = host.vnet("diff", str(path), "now")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"vnet-tui: can't read {path}: ") and "Traceback" not in done.stderr


def _frames(path: Path) -> list[Any]:
    try:
        opened = Recording(path)
    except (CorruptFile, OSError):
        return []
    opened.close()
    return list(opened.frames)


def _recorded(path: Path, words: str) -> bool:
    try:
        opened = Recording(path)
    except (CorruptFile, OSError):
        return False
    found = any(words in change.sentence for changes in opened.changes() for change in changes)
    opened.close()
    return found


def test_moments_of_a_recording_are_compared_with_their_times(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "shop.vnetrec"
    with recording(shop, path) as process:
        wait_until(lambda: _frames(path))
        first = int(_frames(path)[0].wall)
        wait_until(lambda: int(_frames(path)[-1].wall) > first)
        shop.run("ip route del default", "web")
        wait_until(lambda: _recorded(path, "route default via 10.20.0.1"))
        # Rule order is in no event: its time is found by bisection.
        move_first_rule(shop)
        middle = len(_frames(path))
        wait_until(lambda: len(_frames(path)) > middle + 2)
        shop.run("ip link set v-db down")
        wait_until(lambda: _recorded(path, "v-db in host was set down"))
        last = len(_frames(path))
        wait_until(lambda: len(_frames(path)) > last)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    done = shop.vnet("diff", f"{path}@+0s", str(path), "--json")
    found = json.loads(done.stdout)["differences"]
    times = [one["at"] for one in found]
    assert done.returncode == 1 and times == sorted(times, reverse=True)
    frames = _frames(path)
    assert all(frames[0].wall <= at <= frames[-1].wall for at in times), (times, frames)
    sentences = [one["sentence"] for one in found]
    down = next(i for i, text in enumerate(sentences) if "v-db in host was set down" in text)
    route = next(i for i, text in enumerate(sentences) if "route default via" in text)
    assert down < route, sentences
    assert shop.vnet("diff", str(path), str(path)).stdout == "No difference.\n"
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(frames[0].wall))
    early = shop.vnet("diff", f"{path}@{clock}", f"{path}@-0s", "--json")
    assert {one["sentence"] for one in json.loads(early.stdout)["differences"]} == set(sentences)


@pytest.mark.parametrize(
    ("when", "reason"), [("noon", "it isn't a clock or a span"), ("-9h", "it has moments from")]
)
def test_a_wrong_time_is_a_sentence(host: ThrowawayHost, tmp_path: Path, when: str, reason: str) -> None:
    path = tmp_path / "host.vnetrec"
    with recording(host, path) as process:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    done = host.vnet("diff", f"{path}@{when}", "now")
    assert done.returncode == 2 and reason in done.stderr and "Try: " in done.stderr


def test_a_time_in_a_dump_is_a_sentence(dumps: Dumps) -> None:
    done = dumps.host.vnet("diff", f"{dumps.before}@-5m", "now")
    assert done.returncode == 2 and "only recordings have more than one moment" in done.stderr
