"""Keep this host and what etcd holds for overlays in agreement, for the agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from core.collect import etcd
from core.collect.etcd import EtcdError, Joined, joined_networks
from core.collect.links import read_nets
from core.frr_config import sorted_peers
from core.model import Namespace, NetState, Snapshot
from core.model.etcd import address_key, host_key
from core.model.link import ALL_ZERO
from core.netlink.netns import HOST_PATH, THREAD_PATH, inode_of
from core.operations import (
    AddAddress,
    AddFdb,
    ConfigureFrr,
    DeleteFdb,
    JoinEtcd,
    LeaseAddress,
    LeaveEtcd,
    Operation,
    ReleaseAddress,
    SetLink,
)
from core.operations.attachments import read_attachments
from core.operations.etcd import host_value, lease_of_host
from core.operations.executor import Executor
from core.operations.frr import saved_group
from core.plan.overlay import flood_entry, remotes_of
from core.plan.tags import VnetNetwork, VnetState, vnet_state
from core.state import writers_lock

# Leased addresses are compared at every tenth poll, and after the lease was renewed too late.
_POLLS = 10


@dataclass(frozen=True, slots=True)
class _Host:
    """This host's links, and what vnet-tui made of them."""

    net: NetState
    vnet: VnetState

    def is_up(self, port: str) -> bool:
        """Return whether a link is up."""
        return any(one.name == port and one.admin_up for one in self.net.links.values())


def _read_host() -> _Host:
    space = Namespace(inode_of(HOST_PATH), is_host=True, entry=THREAD_PATH)
    nets = read_nets([space])
    return _Host(nets[space.inode], vnet_state(Snapshot(nets=nets), space.inode))


class EtcdSync:
    """Renew this host's leases; follow the hosts that join and leave.

    An address that another host has leased meanwhile is taken off the network here: the port of its container
    is set down, and up again when the address is free.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._polls = 0
        self._hosts: dict[str, tuple[str, ...]] = {}  # the other hosts of each network
        self._disconnected: set[str] = set()  # ports

    def sync(self) -> None:
        """Compare once.

        Raises EtcdError for the first etcd that doesn't answer, after all others.
        """
        joined, errors = joined_networks(), {}  # by URL
        is_due = self._polls % _POLLS == 0
        self._polls += 1
        changed = False
        for name, own in joined.items():
            if own.endpoints in errors:
                continue  # each attempt may take seconds
            try:
                changed |= self._sync(name, own, is_due)
            except EtcdError as error:
                errors[own.endpoints] = error
        if changed or (is_due and joined):
            self._follow_hosts(joined)
        if errors:
            self._polls = 0
            raise next(iter(errors.values()))

    def _sync(self, name: str, own: Joined, is_due: bool) -> bool:
        """Renew the lease of one network; return whether its hosts have changed."""
        found = etcd.hosts_in(name, etcd.read_prefix(own.endpoints, host_key(name)))
        stored = found.get(own.host)
        is_own = stored is not None and stored.value == host_value(own.hostname)
        is_kept = bool(stored and is_own and etcd.keep_alive(own.endpoints, stored.lease))
        if not is_kept:
            with writers_lock(wait=True):
                if joined_networks().get(name) != own:
                    return False  # it was left meanwhile
                lease_of_host(name)
            self._log(f"the lease of this host for {name} had expired: it has joined again")
        if (is_due or not is_kept) and not self._compare_addresses(name, own):
            return False
        family = ":" in own.host
        hosts = tuple(one for one in found if one != own.host and (":" in one) == family)
        # After a loss of all keys the others are absent until their agents have stored them again.
        if not is_kept or self._hosts.get(name) == hosts:
            return False
        self._hosts[name] = hosts
        return True

    # Addresses

    def _compare_addresses(self, name: str, own: Joined) -> bool:
        """Make leases and attachments agree; return whether the network still exists here."""
        if not any(self._address_steps(name, own)):
            return True
        with writers_lock(wait=True), Executor() as executor:
            if joined_networks().get(name) != own:
                return False  # it was left meanwhile
            steps, sentences = self._address_steps(name, own)
            for step in steps:
                with suppress(LookupError):  # the link disappeared meanwhile
                    step.execute(executor)
                if isinstance(step, SetLink):
                    self._disconnected ^= {step.name}
            for sentence in sentences:
                self._log(sentence)
            return joined_networks().get(name) == own

    def _address_steps(self, name: str, own: Joined) -> tuple[list[Operation], list[str]]:
        """Return the steps after which leases and attachments agree, and sentences."""
        host, used = _read_host(), _used_addresses(name)
        if name not in host.vnet.networks:
            leaving = LeaveEtcd(JoinEtcd(name, **asdict(own)))
            return [leaving], [f"{name} no longer exists on this host: it is removed from etcd"]
        members = {
            address.partition("/")[0]: one
            for one in host.vnet.members
            if one.network == name
            for address in one.addresses
        }
        used |= {address: one.container for address, one in members.items()}
        owners = etcd.leased_in(name, etcd.read_prefix(own.endpoints, address_key(name)))
        steps: list[Operation] = []
        sentences = []
        for address, container in used.items():
            lease = LeaseAddress(name, own.endpoints, own.host, address, container)
            port = members[address].port if address in members else ""
            if address not in owners:
                steps.append(lease)
                sentences.append(f"the lease of {address} in {name} was missing: leased again")
            if owners.get(address, own.host) != own.host:
                if port and host.is_up(port):
                    steps.append(SetLink(port, "up", "down", "up"))
                    sentences.append(_duplicate(address, owners[address], container, name))
            elif port in self._disconnected and not host.is_up(port):
                steps.append(SetLink(port, "up", "up", "down"))
                sentences.append(f"{address} is free: {container} is connected to {name} again")
        for address, owner in owners.items():
            if owner == own.host and address not in used:
                steps.append(ReleaseAddress(LeaseAddress(name, own.endpoints, own.host, address, "")))
                sentences.append(f"no container has {address} of {name}: its lease is ended")
        return steps, sentences

    # Hosts

    def _follow_hosts(self, joined: Mapping[str, Joined]) -> None:
        """Give tunnels and BGP sessions the other hosts."""
        self._hosts = {name: hosts for name, hosts in self._hosts.items() if name in joined}
        if not self._host_steps():
            return
        with writers_lock(wait=True), Executor() as executor:
            for step in self._host_steps():
                with suppress(LookupError, FileNotFoundError):  # the link or entry disappeared meanwhile
                    step.execute(executor)
                    self._log(step.describe())

    def _host_steps(self) -> list[Operation]:
        host = _read_host()
        steps: list[Operation] = []
        for name, hosts in self._hosts.items():
            network = host.vnet.networks.get(name)
            if network and network.etcd and not network.evpn:
                steps += _flood_steps(network, hosts, host.net)
        return steps + self._session_steps(host.vnet)

    def _session_steps(self, vnet: VnetState) -> list[Operation]:
        networks = [one for one in vnet.networks.values() if one.evpn]
        group = saved_group() if any(one.etcd for one in networks) else None
        if group is None:
            return []
        peers = {host for one in networks for host in self._hosts.get(one.name, ())}
        if not all(one.etcd and one.name in self._hosts for one in networks):
            peers |= set(group.peers)  # some weren't read from etcd
        after = replace(group, peers=sorted_peers(peers))
        return [ConfigureFrr(after, group)] if set(group.peers) != peers else []


def _duplicate(address: str, owner: str, container: str, network: str) -> str:
    name = container.partition(":")[2]
    return (
        f"{owner or 'another host'} has leased {address} while the lease of this host had expired: {name} is "
        f"disconnected from {network}. Try: vnet-tui detach {name} {network}, then vnet-tui attach"
    )


def _used_addresses(network: str) -> dict[str, str]:
    """Return the addresses that the agent gives to containers when they start."""
    return {
        step.address.partition("/")[0]: one.container
        for one in read_attachments()
        if one.network == network
        for step in one.steps
        if isinstance(step, AddAddress)
    }


def _flood_steps(network: VnetNetwork, hosts: tuple[str, ...], net: NetState) -> list[Operation]:
    tunnel = next((one for one in net.links.values() if one.name == f"vx{network.vni}"), None)
    if tunnel is None or tunnel.kind != "vxlan":
        return []
    existing = remotes_of(tunnel, net)
    # What was learned from a host that is gone would hide the next host with its addresses.
    gone = [
        AddFdb(tunnel.name, one.mac, on_master=False, state=one.state, dst=one.dst)
        for one in net.fdb
        if one.port == tunnel.ifindex and one.dst and one.dst not in hosts
        if one.mac == ALL_ZERO or one.state == "learned"
    ]
    return [
        *(flood_entry(tunnel.name, one) for one in hosts if one not in existing),
        *map(DeleteFdb, gone),
    ]
