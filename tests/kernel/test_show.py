"""`vnet-tui show` on a host, compared with ip(8), bridge(8) and conntrack(8)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.bulk_conntrack import insert
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tui.cli"]


@pytest.fixture
def shop(host: ThrowawayHost) -> ThrowawayHost:
    """Yield a host with a bridge, a container on it, and an uplink."""
    host.run("ip link add br-shop type bridge stp_state 1")
    host.run("ip addr add 10.20.0.1/24 dev br-shop")
    host.run("ip link set br-shop up")
    host.container("web", "br-shop", "10.20.0.2/24", "10.20.0.1")
    host.run("ip link set eth0 mtu 1400", inside="web")
    host.run("ip route add blackhole 10.99.0.0/16")
    return host


def show(host: ThrowawayHost, *arguments: str) -> Any:
    """Return the document of `show --json` on that host."""
    done = host.vnet("show", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def links_in(shown: Any, inode: int) -> dict[str, Any]:
    """Return the shown links of one namespace by name."""
    return {link["name"]: link for link in shown["links"] if link["ns"] == inode}


@pytest.mark.parametrize("inside", ["host", "web"])
def test_links(shop: ThrowawayHost, inside: str) -> None:
    shown = links_in(show(shop, "links"), shop.inode_of(inside))
    expected = {link["ifname"]: link for link in shop.json("ip -j -d addr", inside)}
    assert shown.keys() == expected.keys()
    for name, link in expected.items():
        mine = shown[name]
        assert (mine["ifindex"], mine["mtu"], mine["state"]) == (
            link["ifindex"],
            link["mtu"],
            link["operstate"].lower(),
        )
        assert mine["admin_up"] == ("UP" in link["flags"])
        assert mine["master_name"] == link.get("master")
        assert mine["mac"] == link["address"] or mine["kind"] == "loopback"
        assert [(each["address"], each["prefixlen"]) for each in mine["addresses"]] == [
            (each["local"], each["prefixlen"]) for each in link["addr_info"]
        ]


def test_the_host_is_the_current_namespace(shop: ThrowawayHost) -> None:
    shown = show(shop, "namespaces")
    assert shown["host"]["netns"] == shop.inode
    by_inode = {each["inode"]: each for each in shown["namespaces"]}
    assert by_inode[shop.inode]["is_host"] and by_inode[shop.inode]["label"] == "host"
    assert shop.full("web") in by_inode[shop.inode_of("web")]["names"]


def test_veths(shop: ThrowawayHost) -> None:
    outside, inside = (
        {link["ifname"]: link["ifindex"] for link in shop.json("ip -j link", where)}
        for where in ("host", "web")
    )
    pairs = [pair["ends"] for pair in show(shop, "veths", "--ns", "host")["veths"]]
    assert [[(end["ns"], end["ifindex"], end["mtu"]) for end in ends] for ends in pairs] == [
        [(shop.inode, outside["v-web"], 1500), (shop.inode_of("web"), inside["eth0"], 1400)]
    ]
    assert (pairs[0][0]["master_name"], pairs[0][1]["addresses"][0]) == ("br-shop", "10.20.0.2/24")


def test_bridges(shop: ThrowawayHost) -> None:
    shown = show(shop, "bridges", "--ns", "host")["bridges"]
    expected = [
        link for link in shop.json("ip -j -d link") if link.get("linkinfo", {}).get("info_kind") == "bridge"
    ]
    ports = shop.json("bridge -j -d link")
    assert [bridge["name"] for bridge in shown] == [link["ifname"] for link in expected] == ["br-shop"]
    assert shown[0]["bridge"]["stp"] == bool(expected[0]["linkinfo"]["info_data"]["stp_state"])
    assert [(port["name"], port["port"]["state"]) for port in shown[0]["ports"]] == [
        (port["ifname"], port["state"]) for port in ports
    ]
    fdb = [each for each in shop.json("bridge -j fdb show br br-shop") if "self" not in each.get("flags", [])]
    assert {each["mac"] for each in fdb} <= {each["mac"] for each in shown[0]["fdb"]}


def test_routes(shop: ThrowawayHost) -> None:
    shown = show(shop, "routes", "--ns", "host")["routes"]
    main = {(each["dst"], each["kind"]) for each in shown if each["table"] == "main" and each["family"] == 4}
    expected = {(each["dst"], each.get("type", "unicast")) for each in shop.json("ip -j route")}
    assert main == expected and ("10.99.0.0/16", "blackhole") in main
    inside = show(shop, "routes", "--ns", shop.full("web"))["routes"]
    way_out = next(each for each in inside if each["dst"] == "default")
    assert [(hop["gateway"], hop["link"]) for hop in way_out["nexthops"]] == [("10.20.0.1", "eth0")]


def test_conntrack(inside_host: ThrowawayHost) -> None:
    inside_host.run(["nft", "add table ip t; add chain ip t c { type filter hook input priority 0; }; "
                     "add rule ip t c ct state new accept"])  # fmt: skip
    insert(500)
    entries = show(inside_host, "conntrack", "--ns", "host")["conntrack"]
    lines = (
        inside_host.run("conntrack -L").splitlines() + inside_host.run("conntrack -L -f ipv6").splitlines()
    )
    expected = {
        tuple(word.partition("=")[2] for word in line.split() if word.startswith(("src=", "sport=")))
        for line in lines
    }
    shown = {
        tuple(str(entry[way][side]) for way in ("original", "reply") for side in ("src", "sport"))
        for entry in entries
    }
    assert len(entries) == 500 and shown == expected
    assert all(entry["outside"] for entry in entries)


@pytest.mark.needs("nobody")
def test_a_dump_has_the_same_content(shop: ThrowawayHost) -> None:
    live = links_in(show(shop, "links"), shop.inode)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/shop.vnet"
        assert shop.vnet("dump", path).returncode == 0
        os.chown(path, 65534, 65534)  # only its owner may read it
        shop.close()
        later = subprocess.run(
            [*PROGRAM, "--from", path, "show", "all", "--json"],
            cwd=ROOT, capture_output=True, check=True, user=65534, group=65534, extra_groups=[],
        )  # fmt: skip
    kept = links_in(json.loads(later.stdout), shop.inode)
    assert kept == live and len(live) == 3


def test_a_dump_is_read_from_a_pipe(shop: ThrowawayHost, tmp_path: Path) -> None:
    """It prints that it waits: without a writer it would look hung."""
    assert shop.vnet("dump", f"{tmp_path}/shop.vnet").returncode == 0
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(
        [*PROGRAM, "--from", f"{tmp_path}/pipe", "show", "links", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as reader:  # fmt: skip
        assert reader.stderr and b"waiting for what is written into the pipe" in reader.stderr.readline()
        (tmp_path / "pipe").write_bytes((tmp_path / "shop.vnet").read_bytes())
        read = json.loads(reader.communicate()[0])
    assert links_in(read, shop.inode) == links_in(show(shop, "links"), shop.inode)


def test_text_and_json_agree(shop: ThrowawayHost) -> None:
    done = shop.vnet("show", "links", "--ns", "host")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert names == [link["ifname"] for link in shop.json("ip -j link")]


def test_on_the_demo_lab() -> None:
    done = subprocess.run(
        [*PROGRAM, "demo", "--no-traffic", "vnet-tui", "show", "veths", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pairs = [pair["ends"] for pair in json.loads(done.stdout)["veths"]]
    assert {end["name"] for ends in pairs for end in ends} >= {"v-web1", "eth0"}
    assert all(len(ends) == 2 for ends in pairs)


def test_no_such_command_on_the_demo_lab() -> None:
    done = subprocess.run(
        [*PROGRAM, "demo", "no-such"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "vnet-tui: can't run 'no-such' in the demo lab: there is no such command\n",
    )
