"""Check overlays whose hosts and addresses are kept in etcd, with a real etcd-server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from core.model.etcd import address_key, definition_key, host_key
from core.plan.vxlan import range_of
from tests.support.etcd import CREATE, TUNNEL, Cluster, cluster, whole_state
from tests.support.killing import COUNTED, KILL_AT
from tests.support.machine import PROGRAM, Machine, machine_state, ok, refused
from tests.support.terminal import Terminal
from tests.support.underlay import addresses_of, connect_containers, container, flood_list, underlay
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


def test_the_url_is_all_that_another_host_needs() -> None:
    with cluster(3) as found:
        found.join("--ipv6 --vni 4242 --subnet 10.9.0.0/24 --subnet fd09::/64 --mtu 1400")
        for host in found.hosts:
            found.agent(host)
        ends = connect_containers(found.hosts, "blue")
        every = {address for host, name in ends for address in addresses_of(host, name)}
        assert len(every) == 6
        for host, name in ends:
            for address, subnet in zip(addresses_of(host, name), ("10.9.0.0/24", "fd09::/64"), strict=True):
                own = range_of(subnet, found.under.address(host))
                assert ip_address(address) in ip_network(own)
        assert set(found.leased()) == every


def test_the_dashboards_form_creates_it_and_joins_it() -> None:
    """The first host defines it, with a subnet of its own; the others take it from etcd."""
    with cluster(2) as found:
        for host, subnet in zip(found.hosts, ("10.9.0.0/24", ""), strict=True):
            with Terminal(host.words(*PROGRAM, "--write"), **host.environment) as terminal:
                terminal.wait_for("Network")
                terminal.press("n")
                terminal.wait_for("VLAN filtering")
                terminal.press("blue\toverlay")
                terminal.wait_for("2379 if it is used")
                terminal.press(f"\t\t{found.url}")
                terminal.wait_for("etcdctl")
                terminal.press(f"\t\t{subnet}")
                terminal.wait_for("10.9.0.1" if subnet else "etcdctl")
                title = "create the overlay network blue" if subnet else "join the overlay network blue"
                terminal.wait_for(title)
                terminal.settle(1)
                terminal.press("\r")
                wait_until(lambda host=host: found.under.address(host) in found.joined(), "this host in etcd")
        for host in found.hosts:
            found.agent(host)
        ends = connect_containers(found.hosts, "blue")
        every = {address for host, name in ends for address in addresses_of(host, name)}
        assert set(found.leased()) == every and all(one.startswith("10.9.0.") for one in every)


@pytest.mark.parametrize(
    "command",
    [
        "detach a blue",
        "container rm a",
        "network leave blue",
        "network rm blue",
        "container create b --network blue",
    ],
)
def test_undo_restores_the_keys(command: str) -> None:
    with cluster(2) as found:
        one = found.hosts[0]
        found.join("--ipv6")
        container(one, "a", "blue")
        before = whole_state(found, one)
        ok(one, command)
        assert whole_state(found, one) != before
        ok(one, "undo")
        assert whole_state(found, one) == before


def test_the_last_host_that_leaves_deletes_the_definition() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        before = [machine_state(host) for host in found.hosts]
        found.join()
        container(one, "a", "blue")
        ok(one, "network leave blue")
        assert found.leased() == {}
        assert found.joined() == {found.under.address(other)}
        ok(other, "network leave blue")
        assert found.etcd.content() == {}
        ok(other, "undo")
        assert [*found.etcd.content()] == [
            definition_key("blue"),
            host_key("blue", found.under.address(other)),
        ]
        ok(other, "undo")
        ok(one, "undo")
        ok(one, "container rm a")
        ok(one, "network leave blue")
        assert found.etcd.content() == {}
        assert [machine_state(host)["links of "] for host in found.hosts] == [
            one["links of "] for one in before
        ]


def test_undo_of_creation_and_of_joining_leaves_nothing() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        before = [machine_state(host) for host in found.hosts]
        ok(one, f"{CREATE} {found.url}")
        created = found.etcd.content()
        ok(other, f"network join blue --etcd {found.url}")
        assert found.etcd.content() != created
        ok(other, "undo")
        assert found.etcd.content() == created
        ok(one, "undo")
        assert found.etcd.content() == {}
        assert [machine_state(host) for host in found.hosts] == before


def test_an_earlier_creation_is_undone_without_the_others() -> None:
    with cluster(2) as found:
        found.join()
        ok(found.hosts[0], "undo")
        assert [*found.etcd.content()] == [definition_key("blue"), host_key("blue", "192.0.2.2")]


def test_commands_of_the_preview_do_the_same() -> None:
    with cluster(2) as found:
        one = found.hosts[0]
        script = ok(one, f"{CREATE} {found.url} --dry-run")
        etcd = [line.strip() for line in script.splitlines() if "etcdctl" in line]
        assert len(etcd) == 2
        for line in etcd:
            one.run(["bash", "-euc", line])
        by_commands = found.etcd.content()
        one.run(f"etcdctl --endpoints {found.url} del --prefix /vnet-tui")
        found.join()
        by_plan = found.etcd.content()
        assert by_commands.items() <= by_plan.items()
        ok(one, "container create a")
        (line,) = (
            line.strip() for line in ok(one, "attach a blue --dry-run").splitlines() if "etcdctl" in line
        )
        one.run(["bash", "-euc", line])
        by_commands = found.etcd.content()
        ok(one, "attach a blue")
        assert found.etcd.content() == by_commands != by_plan
        (line,) = (
            line.strip() for line in ok(one, "detach a blue --dry-run").splitlines() if "etcdctl" in line
        )
        one.run(["bash", "-euc", line])
        assert found.etcd.content() == by_plan


def test_hosts_that_attach_at_once_get_different_addresses() -> None:
    """A small subnet, so that they compete; who loses leaves nothing behind."""
    with cluster(2) as found:
        found.join("--subnet 10.9.0.0/27")
        names = [(host, f"c{number}") for number in range(12) for host in found.hosts]
        for host, name in names:
            ok(host, f"container create {name}")
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda each: each[0].vnet("attach", each[1], "blue"), names))
        assert "Traceback" not in "".join(one.stderr for one in done)
        failed = [one.stderr for one in done if one.returncode]
        assert all("leased it meanwhile" in one or "change is under way" in one for one in failed), failed
        for (host, name), one in zip(names, done, strict=True):
            if one.returncode:
                ok(host, f"attach {name} blue")
        used = [
            (address, found.under.address(host))
            for host, name in names
            for address in addresses_of(host, name)
        ]
        assert len({address for address, _ in used}) == len(names)
        assert found.leased() == dict(used)
        last = [
            host.vnet("container", "create", f"d{number}", "--network", "blue")
            for number in range(6)
            for host in found.hosts
        ]
        assert "blue is full" in "".join(one.stderr for one in last)
        assert len(found.leased()) == 29


def test_an_address_that_another_host_has_is_refused() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        found.join()
        address = container(one, "a", "blue")
        ok(other, "container create b")
        before = whole_state(found, other)
        assert f"{address} is leased to 192.0.2.1" in refused(
            other, "attach", "b", "blue", "--address", address
        )
        assert whole_state(found, other) == before


def test_an_etcd_that_was_never_there_is_refused() -> None:
    with underlay(1) as under:
        (host,) = under.hosts
        before = machine_state(host)
        for url, reason in (
            ("http://192.0.2.1:2379", "doesn't answer (Connection refused)"),
            ("http://192.0.2.77:2379", "doesn't answer ("),
            ("http://192.0.2.1:1,http://192.0.2.1:2", "doesn't answer"),
            ("http://user:word@192.0.2.1", "every user of this host could read it"),
            ("ftp://192.0.2.1", "isn't a URL"),
            ("http://192.0.2.1/v3", "more than scheme, host and port"),
            ("http://192.0.2.1:99999", "isn't the address of etcd"),
        ):
            for words in ("network create blue --kind overlay", "network join blue"):
                error = refused(host, *words.split(), "--etcd", url)
                assert reason in error and " the network blue: " in error, error
        error = refused(host, "network", "create", "shop", "--etcd", "http://192.0.2.1:2379")
        assert "only an overlay keeps" in error
        assert machine_state(host) == before
        assert "vxlan" not in host.run("ip -d link")


def test_an_interrupted_change_leaves_neither_keys_nor_links() -> None:
    with cluster(2, 3600) as found:
        one, other = found.hosts
        ok(one, f"{CREATE} {found.url}")
        before = whole_state(found, other)
        counted = other.folder / "counted"
        words = ("network", "join", "blue", "--etcd", found.url)
        with_environment(other, words, {COUNTED: str(counted)})
        ok(other, "undo")
        count = int(counted.read_text())
        for at in range(2, count + 1, count // 20):
            done = with_environment(other, words, {KILL_AT: str(at)})
            assert done.returncode == -9, done
            if "no change was interrupted" in ok(other, "recover"):
                other.vnet("undo")  # it was killed before it began, or after it was done
            assert whole_state(found, other) == before, at


def with_environment(
    host: Machine, words: tuple[str, ...], more: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a vnet-tui command with further variables."""
    code = (
        "import os; from tests.support.killing import arm; arm(os.environ); from tui.cli import main; main()"
    )
    command = host.words(sys.executable, "-c", code, *words)
    return subprocess.run(command, env=host.environment | more, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "it isn't JSON"), ("[" * 4000, "it isn't JSON"), ("[]", "isn't a JSON object"),
        ("x" * 100_000, "larger than 4096 bytes"), ("\x1b[31m", "it isn't JSON"),
        ({"vni": 2**24}, '"vni" must be a number'), ({"vni": True}, '"vni" must be a number'),
        ({"subnets": ["10.9.0.0/24", "10.8.0.0/24"]}, "one of each address family"),
        ({"subnets": ["10.9.0.1/24"]}, "has host bits set"), ({"subnets": ["\x1b[31m"]}, "\\x1b[31m"),
        ({"gateways": ["10.8.0.1"]}, "needs a gateway in each subnet"), ({"gateways": []}, "needs a gateway"),
        ({"subnets": ["192.0.2.0/24"], "gateways": ["192.0.2.9"]}, "overlaps with"),
        ({"mtu": -1}, '"mtu" must'),
        ({"evpn": 1}, '"evpn" must be true or false'), ({"asn": "x"}, '"asn" must'),
    ],
)  # fmt: skip
def test_hostile_definitions_are_refused(one: Cluster, value: Any, reason: str) -> None:
    (host,) = one.hosts
    good = {"vni": 77, "subnets": ["10.9.0.0/24"], "gateways": ["10.9.0.1"], "mtu": 1400}
    one.etcd.put(definition_key("blue"), value if isinstance(value, str) else json.dumps(good | value))
    before = whole_state(one, host)
    error = refused(host, "network", "join", "blue", "--etcd", one.url)
    assert reason in error and "\x1b" not in error
    assert whole_state(one, host) == before


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    """Start one host, and one with etcd."""
    with cluster(1) as found:
        yield found


def test_hostile_hosts_and_addresses_are_ignored() -> None:
    with cluster(1) as found:
        (host,) = found.hosts
        found.join("--subnet 10.9.0.0/24")
        own = range_of("10.9.0.0/24", "192.0.2.1")
        first = own.rpartition(".")[0] + "." + str(int(own.split(".")[3].split("/")[0]))
        for name in ("\x1b[31m", "224.0.0.1", "192.0.2.01", "::1", "x" * 1000, "2001:db8::1", "-rf"):
            found.etcd.put(host_key("blue", name), "\x1b{")
        for name in ("\x1b[31m", "10.8.0.9", "x" * 1000, "10.9.0.17/24"):
            found.etcd.put(address_key("blue", name), "\x1b{")
        found.etcd.put(address_key("blue", first), "x" * 200_000)
        logged = found.agent(host)
        found.etcd.put(host_key("blue", "192.0.2.9"), "{")
        wait_until(lambda: flood_list(host, TUNNEL) == {"192.0.2.9"}, "the flood list")
        assert container(host, "a", "blue") != first
        ok(host, "container create b")
        assert f"{first} is leased to another host" in refused(
            host, "attach", "b", "blue", "--address", first
        )
        assert logged.poll() is None


def test_hosts_of_the_other_family_are_left_out() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        ok(one, f"{CREATE} {found.url}")
        found.etcd.put(host_key("blue", "2001:db8::9"), "{}")
        done = other.vnet("network", "join", "blue", "--etcd", found.url)
        assert "without 2001:db8::9: tunnels to other hosts use IPv4" in done.stderr
        assert flood_list(other, TUNNEL) == {"192.0.2.1"}


_JOIN_BY_AN_EARLIER_DEFINITION = """
import sys
from core.operations import JoinEtcd
from core.operations.executor import Executor
with Executor() as executor:
    JoinEtcd("blue", sys.argv[1], "192.0.2.2", "other", 120, "{}").execute(executor)
"""


def test_a_definition_that_changes_before_a_host_joins_is_noticed() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        ok(one, f"{CREATE} {found.url}")
        before = whole_state(found, other)
        words = other.words(sys.executable, "-c", _JOIN_BY_AN_EARLIER_DEFINITION, found.url)
        done = subprocess.run(words, env=other.environment, capture_output=True, text=True, check=False)
        assert "EtcdError: its definition has changed in etcd now" in done.stderr
        assert whole_state(found, other) == before


def test_keys_of_another_host_stay() -> None:
    """Another host may have this host's address, or have leased one of its addresses."""
    with cluster(1) as found:
        (host,) = found.hosts
        found.join()
        address = container(host, "a", "blue")
        found.etcd.put(address_key("blue", address), '{"host": "192.0.2.9"}')
        ok(host, "detach a blue")
        assert found.leased() == {address: "192.0.2.9"}
        key, lease = host_key("blue", "192.0.2.1"), found.etcd.lease(host_key("blue", "192.0.2.1"))
        host.run(f"etcdctl --endpoints {found.url} put {key} {{}} --lease={lease:x}")
        ok(host, "network leave blue")
        assert found.joined() == {"192.0.2.1"}


def test_given_options_must_agree() -> None:
    with cluster(1) as found:
        (host,) = found.hosts
        found.etcd.put(
            definition_key("blue"), '{"vni":77,"subnets":["10.9.0.0/24"],"gateways":["10.9.0.1"],"mtu":1400}'
        )
        before = whole_state(found, host)
        for words, reason in (
            ("--vni 78", "with the VNI 77, not 78"), ("--subnet 10.8.0.0/24", "with the subnet 10.9.0.0/24"),
            ("--mtu 1300", "with the MTU 1400"), ("--gateway 10.9.0.2", "with the gateway 10.9.0.1"),
            ("--ipv6", "without an IPv6 subnet"), ("--evpn", "without EVPN"),
            ("--remote 192.0.2.9", "comes from etcd"), ("--peer 192.0.2.9", "comes from etcd"),
            ("--range 10.9.0.0/28", "no range"),
        ):  # fmt: skip
            for command in ("network join blue", "network create blue --kind overlay"):
                assert reason in refused(host, *command.split(), "--etcd", found.url, *words.split())
        assert whole_state(found, host) == before
        ok(host, f"network join blue --vni 77 --subnet 10.9.0.0/24 --mtu 1400 --etcd {found.url}")
        assert "has no network of that name" in refused(host, "network", "join", "green", "--etcd", found.url)
        assert "hosts come from etcd" in refused(host, "network", "join", "blue", "--remote", "192.0.2.9")
        assert "hosts come from etcd" in refused(host, "network", "leave", "blue", "--remote", "192.0.2.9")


def test_export_and_apply_agree() -> None:
    with cluster(2) as found:
        other, one = found.hosts
        found.join()
        container(one, "a", "blue")
        file = ok(one, "export")
        assert f'etcd = "{found.url}"' in file and "remotes" not in file
        assert "done" not in ok(one, "apply - --yes", text=file)
        before = whole_state(found, one)
        ok(one, "network rm blue")
        ok(one, "apply - --yes", text=file)
        assert whole_state(found, one) == before
        ok(one, "cleanup --yes")
        assert found.leased() == {} and found.joined() == {found.under.address(other)}
