"""Check what hosts and their agents do when etcd, a host or a network of it fails."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

from core.collect.etcd import SAVED
from core.model.etcd import definition_key, host_key
from tests.kernel.test_overlay_evpn import lost
from tests.support.etcd import CREATE, TUNNEL, cluster, container_at, lines_of, whole_state
from tests.support.machine import Machine, machine_state, ok, refused
from tests.support.underlay import (
    FrrDaemons,
    addresses_of,
    agent,
    container,
    flood_list,
    reaches,
    wait_for_ping,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

SECONDS = 4  # of a lease


def test_leases_are_renewed() -> None:
    with cluster(1, SECONDS) as found:
        (host,) = found.hosts
        found.join()
        lease = found.etcd.lease(host_key("blue", "192.0.2.1"))
        found.agent(host)
        wait_until(lambda: 0 <= found.etcd.seconds_left(lease) < SECONDS - 1, "the middle of the lease")
        wait_until(lambda: found.etcd.seconds_left(lease) >= SECONDS - 1, "the renewal")
        assert found.etcd.lease(host_key("blue", "192.0.2.1")) == lease


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


def test_a_lease_ends_with_its_host() -> None:
    with cluster(3, SECONDS) as found:
        one, other, dead = found.hosts
        found.join()
        for host in (one, other):
            found.agent(host)
        found.agent(dead)
        address = container(dead, "a", "blue")
        mac = mac_of(dead, "a")
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
        assert mac_of(other, "c") == mac  # which b knows already
        wait_for_ping(one, "b", address)


def mac_of(host: Machine, name: str) -> str:
    """Return the MAC of a container."""
    return str(host.json("ip -j link show eth0", name)[0]["address"])


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
        error = refused(found.hosts[0], *CREATE.replace("blue", "green").split(), found.url)
        assert error.strip().endswith("FRRouting manages all overlays of this host. Try: --evpn")
        ok(found.hosts[2], "network leave blue")
        wait_until(lambda: frr[found.hosts[0]].established() == {"192.0.2.2"}, "the closed session")
        config = lambda: frr[found.hosts[0]].vtysh("show running-config")  # noqa: E731
        wait_until(lambda: "192.0.2.3" not in config(), "the configuration")


@pytest.mark.needs("frr")
def test_traffic_goes_on_if_all_services_are_killed_at_once() -> None:
    """What the kernels have stays until zebra and bgpd run again; then the agents configure them."""
    with cluster(2) as found:
        one, other = found.hosts
        frr = {host: FrrDaemons(host) for host in found.hosts}
        found.join("--evpn")
        agents = [found.agent(host) for host in found.hosts]
        container(one, "a", "blue")
        address = container(other, "b", "blue")
        wait_for_ping(one, "a", address)

        def kill() -> None:
            found.etcd.kill()
            for each in agents:
                each.kill()
            for name in ("zebra", "bgpd"):  # a bgpd that outlives another host's can't change the kernel
                for daemons in frr.values():
                    daemons.kill(name)
            time.sleep(2)

        def restart() -> None:
            found.etcd.start()
            for host, daemons in frr.items():
                daemons.start("zebra", "bgpd")
                found.agent(host)
            wait_until(lambda: frr[one].established() == {found.under.address(other)}, "the session")

        assert lost(one, "a", address, kill) == 0
        assert lost(one, "a", address, restart) < 250  # of 50 a second; none on an idle machine
        wait_for_ping(one, "a", address)
        assert lost(one, "a", address, lambda: time.sleep(3)) == 0


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


def test_undo_of_a_detachment_whose_address_has_another_host_is_refused() -> None:
    with cluster(2) as found:
        one, other = found.hosts
        found.join()
        address = container(one, "a", "blue")
        ok(one, "detach a blue")
        assert container_at(other, "b", address)
        before = whole_state(found, one)
        assert f"192.0.2.2 has leased {address} since" in refused(one, "undo")
        assert whole_state(found, one) == before


def test_a_host_joins_again_after_a_reboot() -> None:
    """Its keys of the earlier boot are there until their lease expires."""
    with cluster(2) as found:
        one, other = found.hosts
        found.join()
        address = container(one, "a", "blue")
        file = one.folder / "state" / SAVED
        file.write_text(json.dumps({**json.loads(file.read_text()), "boot": "earlier"}))
        for link in ("v-a", TUNNEL, "br-blue"):
            one.run(f"ip link del {link}")
        ok(one, f"network join blue --etcd {found.url}")
        assert found.joined() == {"192.0.2.1", "192.0.2.2"}
        assert found.leased() == {}
        assert container_at(other, "b", address)


def test_the_agent_leaves_a_network_alone_that_this_host_has_left() -> None:
    with cluster(2) as found:
        one, _ = found.hosts
        found.join()
        ok(one, "network leave blue")
        sync = "from core.etcd_sync import EtcdSync; EtcdSync(print).sync()"
        assert one.run([sys.executable, "-c", sync]) == ""
        assert found.joined() == {"192.0.2.2"}


_SYNC_AFTER_A_LOSS = """
import sys
from core.collect import etcd
from core.etcd_sync import EtcdSync
from core.model.etcd import host_key
sync = EtcdSync(print)
sync.sync()
etcd.call(sys.argv[1], "kv/deleterange", etcd.key_range(host_key("blue")))
sync.sync()
"""


def test_other_hosts_have_time_to_join_again_after_a_loss_of_all_keys() -> None:
    with cluster(2) as found:
        one, _ = found.hosts
        found.join()
        assert flood_list(one, TUNNEL) == set()
        said = one.run([sys.executable, "-c", _SYNC_AFTER_A_LOSS, found.url])
        assert "had expired: it has joined again" in said
        assert flood_list(one, TUNNEL) == {"192.0.2.2"}
        assert found.joined() == {"192.0.2.1"}
