"""Check overlays whose hosts and addresses are kept in etcd, with a real etcd-server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from core.model.etcd import address_key, definition_key, host_key
from core.plan.vxlan import range_of, vni_by_name
from tests.support.etcd import EtcdServer
from tests.support.killing import COUNTED, KILL_AT
from tests.support.machine import Machine, machine_state, ok, refused
from tests.support.underlay import (
    FrrDaemons,
    Underlay,
    addresses_of,
    agent,
    container,
    flood_list,
    reaches,
    underlay,
    wait_for_ping,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

SECONDS = 4
TUNNEL = f"vx{vni_by_name('blue')}"
CREATE = "network create blue --kind overlay --etcd"


class Cluster:
    """Hosts of an overlay, and one that runs etcd."""

    def __init__(self, under: Underlay, stack: ExitStack) -> None:
        self.under, self.stack = under, stack
        self.hosts = under.hosts[:-1]
        self.etcd = stack.enter_context(closing(EtcdServer(under.hosts[-1], under.address(under.hosts[-1]))))
        self.url = self.etcd.url

    def join(self, options: str = "") -> None:
        """Create the overlay `blue` on the first host, and join it on the others."""
        ok(self.hosts[0], f"{CREATE} {self.url} {options}")
        for host in self.hosts[1:]:
            ok(host, f"network join blue --etcd {self.url}")

    def agent(self, host: Machine) -> subprocess.Popen[str]:
        """Run the agent on a host until the end of the test."""
        return self.stack.enter_context(agent(host))

    def leased(self) -> dict[str, str]:
        """Return the leased addresses of blue with their hosts."""
        start = address_key("blue")
        found = {name: value for name, value in self.etcd.content().items() if name.startswith(start)}
        return {name.removeprefix(start): json.loads(value)["host"] for name, value in found.items()}

    def joined(self) -> set[str]:
        """Return the hosts of blue."""
        start = host_key("blue")
        return {one.removeprefix(start) for one in self.etcd.content() if one.startswith(start)}


@contextmanager
def cluster(count: int, seconds: int = 120) -> Iterator[Cluster]:
    """Start `count` hosts and one with etcd."""
    with ExitStack() as stack:
        under = stack.enter_context(underlay(count + 1, VNET_ETCD_TTL=str(seconds)))
        yield Cluster(under, stack)


def test_the_url_is_all_that_another_host_needs() -> None:
    with cluster(3) as found:
        found.join("--ipv6 --vni 4242 --subnet 10.9.0.0/24 --subnet fd09::/64 --mtu 1400")
        for host in found.hosts:
            found.agent(host)
        ends = [(host, f"c{number}") for number, host in enumerate(found.hosts)]
        for host, name in ends:
            container(host, name, "blue")
        for host, name in ends:
            for other, far in ends:
                for address in addresses_of(other, far):
                    wait_for_ping(host, name, address)
        every = {address for host, name in ends for address in addresses_of(host, name)}
        assert len(every) == 6
        assert set(found.leased()) == every


def whole_state(found: Cluster, host: Machine) -> dict[str, Any]:
    """Return what commands may change on a host, with its flood list and the content of etcd."""
    state = machine_state(host)
    flood = flood_list(host, TUNNEL) if TUNNEL in host.run("ip -br link") else set()
    return {**state, "flood": flood, "etcd": found.etcd.content()}


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


def test_without_etcd_nothing_new_begins_and_all_else_works() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        found.join()
        container(one, "a", "blue")
        address = container(other, "b", "blue")
        ok(one, "container create c")
        mine = addresses_of(one, "a")[0]
        wait_for_ping(other, "b", mine)
        found.etcd.kill()
        before = machine_state(one)
        for words in (
            ("attach", "c", "blue"),
            ("network", "create", "green", "--kind", "overlay", "--etcd", found.url),
            ("network", "join", "green", "--etcd", found.url),
        ):
            error = refused(one, *words)
            assert f"etcd at {found.url} doesn't answer (Connection refused). Try: " in error
        assert "can't attach c to blue: " in refused(one, "attach", "c", "blue")
        assert machine_state(one) == before
        assert reaches(one, "a", address)
        done = one.vnet("detach", "a", "blue")
        assert done.returncode == 0 and "doesn't answer" in done.stdout + done.stderr
        assert "v-a" not in one.run("ip -br link")
        assert "can't lease" in refused(one, "undo")
        done = other.vnet("undo")
        assert done.returncode == 0 and "doesn't answer" in done.stderr
        ok(other, "network leave blue")
        assert TUNNEL not in other.run("ip -br link")
        found.etcd.start()
        found.agent(one)
        wait_until(
            lambda: not [host for host in found.leased().values() if host == "192.0.2.1"], "the release"
        )
        ok(one, "attach a blue")


def test_undo_of_leaving_without_etcd() -> None:
    with cluster(2) as found:
        _, other = found.hosts
        found.join()
        container(other, "a", "blue")
        before = whole_state(found, other)
        found.etcd.kill()
        ok(other, "network leave blue")
        found.etcd.start()
        ok(other, "undo")
        assert whole_state(found, other) == before


def test_an_outage_longer_than_the_leases_loses_no_packet_and_no_address() -> None:
    """A lease doesn't expire while etcd doesn't run."""
    with cluster(2, SECONDS) as found:
        one, other = found.hosts
        found.join()
        logs = [found.agent(host) for host in found.hosts]
        container(one, "a", "blue")
        address = container(other, "b", "blue")
        wait_for_ping(one, "a", address)
        before = found.etcd.content()
        found.etcd.kill()
        lines_of(logs[0], "can't renew the leases of overlays")
        sent = 10 * 2 * SECONDS
        assert f", {sent} received" in one.run(f"ping -i 0.1 -c {sent} {address}", "a")
        found.etcd.start()
        lines_of(logs[0], "up to date again")
        assert found.etcd.content() == before
        assert flood_list(one, TUNNEL) == {"192.0.2.2"}


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


def test_a_lease_ends_with_its_host() -> None:
    with cluster(3, SECONDS) as found:
        one, other, dead = found.hosts
        found.join()
        for host in (one, other):
            found.agent(host)
        found.agent(dead)
        address = container(dead, "a", "blue")
        wait_until(lambda: flood_list(one, TUNNEL) == {"192.0.2.2", "192.0.2.3"}, "the flood list")
        container(one, "b", "blue")
        wait_for_ping(one, "b", address)
        os.kill(dead.pid, signal.SIGKILL)  # and so all of its processes
        wait_until(lambda: address not in found.leased(), "the end of the lease", 5 * SECONDS)
        wait_until(lambda: flood_list(one, TUNNEL) == {"192.0.2.2"}, "the flood list")
        assert found.joined() == {"192.0.2.1", "192.0.2.2"}
        assert "192.0.2.3" not in one.run(f"bridge fdb show dev {TUNNEL}")
        ok(other, f"container create c --network blue --address {address}")
        assert found.leased()[address] == "192.0.2.2"
        wait_for_ping(one, "b", address)


def lines_of(started: subprocess.Popen[str], text: str) -> str:
    """Return the first line of an agent with this text."""
    assert started.stdout is not None
    return next(line for line in started.stdout if text in line)


def test_a_partition_heals_without_a_duplicate_address() -> None:
    """The host that kept its lease keeps the address; the other's container is cut off."""
    with cluster(2, SECONDS) as found:
        one, cut = found.hosts
        found.join()
        found.agent(one)
        logged = found.agent(cut)
        address, kept = container(cut, "a", "blue"), container(cut, "b", "blue")
        found.under.middle.run(f"ip link set {found.under.port(cut)} down")
        wait_until(lambda: found.joined() == {"192.0.2.1"}, "the end of the lease")
        assert container_at(one, "c", address)
        found.under.middle.run(f"ip link set {found.under.port(cut)} up")
        assert f"192.0.2.1 has leased {address} while" in lines_of(logged, "has leased")
        assert "DOWN" in cut.run("ip -br link show v-a") and "UP" in cut.run("ip -br link show v-b")
        assert found.leased() == {address: "192.0.2.1", kept: "192.0.2.2"}
        wait_for_ping(one, "c", kept)
        ok(one, "container rm c")
        assert lines_of(logged, "is connected to blue again")
        wait_for_ping(cut, "a", kept)
        assert found.leased() == {address: "192.0.2.2", kept: "192.0.2.2"}


def container_at(host: Machine, name: str, address: str) -> bool:
    """Create a container with this address, and return whether it has it."""
    ok(host, f"container create {name} --network blue --address {address}")
    return addresses_of(host, name) == [address]


def test_the_agent_stores_everything_again_after_a_loss_of_all_keys() -> None:
    with cluster(2) as found:
        found.join()
        for number, host in enumerate(found.hosts):
            container(host, f"c{number}", "blue")
            found.agent(host)
        wait_until(
            lambda: [flood_list(host, TUNNEL) for host in found.hosts] == [{"192.0.2.2"}, {"192.0.2.1"}],
            "tunnels",
        )
        before = found.etcd.content()
        found.hosts[0].run(f"etcdctl --endpoints {found.url} del --prefix /vnet-tui/1/networks/blue/hosts")
        found.hosts[0].run(
            f"etcdctl --endpoints {found.url} del --prefix /vnet-tui/1/networks/blue/addresses"
        )
        wait_until(lambda: found.etcd.content() == before, "the keys")


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


def test_a_missing_agent_is_warned_of() -> None:
    with cluster(1) as found:
        (host,) = found.hosts
        words = f"{CREATE} {found.url} --dry-run --json"
        assert "no agent runs on this host: 120 s from now" in ok(host, words)
        with agent(host):
            wait_until(lambda: "no agent runs" not in ok(host, words), "the agent")


def test_a_host_that_only_an_agent_would_add_is_found() -> None:
    with cluster(3) as found:
        _, one, other = found.hosts
        found.join()
        address = container(one, "a", "blue")
        container(other, "b", "blue")
        wait_for_ping(other, "b", address)
        advice = wait_until(lambda: _advice(one, "192.0.2.3"), "the finding")
        assert advice.endswith("run: vnet-tui agent")
        found.agent(one)
        wait_until(lambda: not _advice(one, "192.0.2.3"), "the repair")


def _advice(host: Machine, other: str) -> str:
    """Return the advice about a host that is missing in the flood list, "" without a finding."""
    findings = json.loads(host.vnet("doctor", "--json").stdout)["findings"]
    return next((one["advice"] for one in findings if one["short"] == f"{other} isn't in the flood list"), "")


@pytest.mark.needs("frr")
def test_hosts_with_evpn_find_each_other() -> None:
    with cluster(3) as found:
        frr = {host: FrrDaemons(host) for host in found.hosts}
        found.join("--evpn")
        for host in found.hosts:
            found.agent(host)
        ends = [
            (host, f"c{number}", container(host, f"c{number}", "blue"))
            for number, host in enumerate(found.hosts)
        ]
        for host, name, _ in ends:
            for _, _, address in ends:
                wait_for_ping(host, name, address)
        for host in found.hosts:
            others = {found.under.address(one) for one in found.hosts if one is not host}
            wait_until(lambda host=host, others=others: frr[host].established() == others, "the sessions")  # type: ignore[misc]
        ok(found.hosts[2], "network leave blue")
        wait_until(lambda: frr[found.hosts[0]].established() == {"192.0.2.2"}, "the closed session")
        config = lambda: frr[found.hosts[0]].vtysh("show running-config")  # noqa: E731
        wait_until(lambda: "192.0.2.3" not in config(), "the configuration")


def test_the_lease_of_a_host_with_the_same_address_is_not_renewed() -> None:
    with cluster(1, SECONDS) as found:
        (host,) = found.hosts
        found.join()
        wait_until(lambda: not found.joined(), "the end of the lease")
        found.etcd.put(host_key("blue", "192.0.2.1"), '{"hostname": "another"}')
        with agent(host) as logged:
            assert "another host has the address 192.0.2.1 in etcd" in lines_of(logged, "can't renew")
            found.etcd.delete(host_key("blue", "192.0.2.1"))
            lines_of(logged, "it has joined again")


def test_a_network_that_was_deleted_otherwise_is_removed_from_etcd() -> None:
    with cluster(1) as found:
        (host,) = found.hosts
        found.join()
        container(host, "a", "blue")
        before = found.etcd.content()
        host.run("ip link del br-blue")
        host.run(f"ip link del {TUNNEL}")
        with agent(host) as logged:
            assert lines_of(logged, "blue no longer exists on this host")
        assert [*found.etcd.content()] == [definition_key("blue")]
        ok(host, f"{CREATE} {found.url}")
        assert found.etcd.content() == before
        assert "br-blue" in host.run("ip link show v-a")
