"""Change an overlay's keys in etcd: definition, this host, leased addresses.

Hosts and addresses are bound to a lease, so etcd deletes them when their host no longer renews it. What is
undone or removed while etcd doesn't answer is left to that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from core.collect import etcd
from core.collect.etcd import EtcdError, Joined, joined_networks
from core.model.etcd import address_key, definition_key, host_key, host_of, to_json
from core.operations.base import Operation
from core.operations.executor import Executor
from core.operations.values import recorded
from core.state import boot_id, write_state
from core.text import quoted, safe


@recorded()
@dataclass(frozen=True, slots=True)
class PutDefinition(Operation):
    """Store the definition (JSON) of a network, unless etcd has another one."""

    survives_reboot: ClassVar[bool] = True

    network: str
    endpoints: str
    definition: str

    def command(self) -> str:
        return _etcdctl(self.endpoints, "put", definition_key(self.network), self.definition)

    def inverse(self) -> tuple[DeleteDefinition, ...]:
        return (DeleteDefinition(self),)

    def describe(self) -> str:
        return f"store the definition of {self.network} in etcd"

    def affects(self) -> tuple[str, ...]:
        return (f"{self.network} in etcd",)

    def execute(self, executor: Executor) -> None:
        key = definition_key(self.network)
        if not etcd.transaction(self.endpoints, [etcd.is_absent(key)], [etcd.put(key, self.definition)]):
            found = etcd.read_key(self.endpoints, key)
            if found and found.value != self.definition:
                raise EtcdError("another host has stored another one meanwhile. Try: again")

    def obstacle(self) -> str:
        found = etcd.read_key(self.endpoints, definition_key(self.network))
        return "etcd has another definition of it now" if found and found.value != self.definition else ""


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteDefinition(Operation):
    """Delete the definition of a network without hosts; `stored` is its undo."""

    survives_reboot: ClassVar[bool] = True

    stored: PutDefinition

    def command(self) -> str:
        return _etcdctl(self.stored.endpoints, "del", definition_key(self.stored.network))

    def inverse(self) -> tuple[PutDefinition, ...]:
        return (self.stored,)

    def describe(self) -> str:
        return f"delete the definition of {self.stored.network} in etcd, as no host is left"

    def affects(self) -> tuple[str, ...]:
        return self.stored.affects()

    def execute(self, executor: Executor) -> None:
        key = definition_key(self.stored.network)
        compared = [
            etcd.is_absent(host_key(self.stored.network), is_prefix=True),
            etcd.has_value(key, self.stored.definition),
        ]
        try:
            etcd.transaction(self.stored.endpoints, compared, [etcd.delete(key)])
        except EtcdError as error:
            executor.note(f"{error}: the definition of {self.stored.network} stays there")


@recorded()
@dataclass(frozen=True, slots=True)
class JoinEtcd(Operation):
    """Store this host in etcd, with a lease of `seconds` that the agent renews.

    It fails if the definition isn't `definition`. `host` is this host's tunnel address.
    """

    network: str
    endpoints: str
    host: str
    hostname: str
    seconds: int
    definition: str

    def command(self) -> str:
        granted = f"$(etcdctl --endpoints {self.endpoints} lease grant {self.seconds} | cut -d' ' -f2)"
        key = host_key(self.network, self.host)
        return f"{_etcdctl(self.endpoints, 'put', key, host_value(self.hostname))} --lease={granted}"

    def inverse(self) -> tuple[LeaveEtcd, ...]:
        return (LeaveEtcd(self),)

    def describe(self) -> str:
        return f"add this host ({self.host}) to those of {self.network} in etcd"

    def affects(self) -> tuple[str, ...]:
        return (f"{self.network} in etcd",)

    def execute(self, executor: Executor) -> None:
        joined = Joined(self.endpoints, self.host, self.hostname, self.seconds, self.definition)
        found = etcd.read_key(self.endpoints, host_key(self.network, self.host))
        if found and found.lease and found.value == host_value(self.hostname):
            etcd.revoke(self.endpoints, found.lease)  # of an earlier boot
        expected = etcd.has_value(definition_key(self.network), self.definition)
        if not _put_host(self.network, joined, expected):
            found = etcd.read_key(self.endpoints, host_key(self.network, self.host))
            other = "another host has its address" if found else "its definition has changed"
            raise EtcdError(f"{other} in etcd now. Try: again")
        _save(joined_networks() | {self.network: joined})

    def obstacle(self) -> str:
        etcd.read_key(self.endpoints, host_key(self.network, self.host))
        return ""


@recorded()
@dataclass(frozen=True, slots=True)
class LeaveEtcd(Operation):
    """Delete this host from etcd with all that it has leased; `join` is its undo."""

    join: JoinEtcd

    def command(self) -> str:
        key = host_key(self.join.network, self.join.host)
        lease = _lease_of(self.join.endpoints, key)
        return f"etcdctl --endpoints {self.join.endpoints} lease revoke {lease}"

    def inverse(self) -> tuple[JoinEtcd, ...]:
        return (self.join,)

    def describe(self) -> str:
        return f"remove this host ({self.join.host}) from those of {self.join.network} in etcd"

    def affects(self) -> tuple[str, ...]:
        return self.join.affects()

    def execute(self, executor: Executor) -> None:
        join = self.join
        _save({name: one for name, one in joined_networks().items() if name != join.network})
        try:
            found = etcd.read_key(join.endpoints, host_key(join.network, join.host))
            if found and found.lease and found.value == host_value(join.hostname):
                etcd.revoke(join.endpoints, found.lease)
        except EtcdError as error:
            executor.note(f"{error}: its leases of this host end by themselves within {join.seconds} s")


@recorded()
@dataclass(frozen=True, slots=True)
class LeaseAddress(Operation):
    """Lease an address for a container (uid), unless another host has it."""

    network: str
    endpoints: str
    host: str
    address: str
    container: str

    def command(self) -> str:
        put = _etcdctl(self.endpoints, "put", address_key(self.network, self.address), self.value)
        return f"{put} --lease={_lease_of(self.endpoints, host_key(self.network, self.host))}"

    @property
    def value(self) -> str:
        """Return the value of its key."""
        return to_json({"host": self.host, "container": self.container})

    def inverse(self) -> tuple[ReleaseAddress, ...]:
        return (ReleaseAddress(self),)

    def describe(self) -> str:
        return f"lease {self.address} of {self.network} in etcd"

    def affects(self) -> tuple[str, ...]:
        return (f"{self.address} of {self.network} in etcd",)

    def execute(self, executor: Executor) -> None:
        key, lease = address_key(self.network, self.address), lease_of_host(self.network)
        adding = [etcd.put(key, self.value, lease)]
        if etcd.transaction(self.endpoints, [etcd.is_absent(key)], adding):
            return
        found = etcd.read_key(self.endpoints, key)
        if found and host_of(found.value) != self.host:
            raise EtcdError(
                f"{safe(host_of(found.value)) or 'another host'} has leased it meanwhile. Try: again"
            )
        unchanged = etcd.is_unchanged(found) if found else etcd.is_absent(key)
        if not etcd.transaction(self.endpoints, [unchanged], adding):
            raise EtcdError("its lease is changing. Try: again")

    def obstacle(self) -> str:
        found = etcd.read_key(self.endpoints, address_key(self.network, self.address))
        owner = host_of(found.value) or "another host" if found else self.host
        return "" if owner == self.host else f"{owner} has leased {self.address} since"


@recorded()
@dataclass(frozen=True, slots=True)
class ReleaseAddress(Operation):
    """End the lease of an address, if this host has it; `lease` is its undo."""

    lease: LeaseAddress

    def command(self) -> str:
        return _etcdctl(self.lease.endpoints, "del", address_key(self.lease.network, self.lease.address))

    def inverse(self) -> tuple[LeaseAddress, ...]:
        return (self.lease,)

    def describe(self) -> str:
        return f"end the lease of {self.lease.address} of {self.lease.network} in etcd"

    def affects(self) -> tuple[str, ...]:
        return self.lease.affects()

    def execute(self, executor: Executor) -> None:
        key = address_key(self.lease.network, self.lease.address)
        try:
            found = etcd.read_key(self.lease.endpoints, key)
            if found and host_of(found.value) == self.lease.host:
                etcd.transaction(self.lease.endpoints, [etcd.is_unchanged(found)], [etcd.delete(key)])
        except EtcdError as error:
            executor.note(f"{error}: the agent ends the lease of {self.lease.address} when it does")


def lease_of_host(network: str) -> int:
    """Return the id of this host's lease, a new one if it has expired.

    Raises EtcdError, StateError.
    """
    joined = joined_networks().get(network)
    if joined is None:
        raise EtcdError(f"this host has not joined {network} since it started. Try: vnet-tui network join")
    for _ in range(2):
        found = etcd.read_key(joined.endpoints, host_key(network, joined.host))
        if found is None:
            _put_host(network, joined)
        elif found.value != host_value(joined.hostname):
            break
        elif found.lease:
            return found.lease
    raise EtcdError(f"another host has the address {joined.host} in etcd")


def _put_host(network: str, joined: Joined, *expected: dict[str, object]) -> bool:
    """Store a host with a new lease; return whether that was possible.

    It isn't if the host is there already, or what is `expected` isn't so.
    """
    key, lease = host_key(network, joined.host), etcd.grant(joined.endpoints, joined.seconds)
    adding = etcd.put(key, host_value(joined.hostname), lease)
    if etcd.transaction(joined.endpoints, [etcd.is_absent(key), *expected], [adding]):
        return True
    etcd.revoke(joined.endpoints, lease)
    return False


def _save(networks: dict[str, Joined]) -> None:
    noted = {name: asdict(one) for name, one in networks.items()}
    write_state(etcd.SAVED, {"boot": boot_id(), "networks": noted}, durable=True)


def host_value(hostname: str) -> str:
    """Return the value of a host's key."""
    return to_json({"hostname": hostname})


def _etcdctl(endpoints: str, *words: str) -> str:
    return " ".join(["etcdctl", "--endpoints", endpoints, *map(quoted, words)])


def _lease_of(endpoints: str, key: str) -> str:
    """Return a shell's words for the lease of a key, in hexadecimal."""
    read = f"etcdctl --endpoints {endpoints} get {quoted(key)} -w json"
    return f"$(printf %x $({read} | grep -o '\"lease\":[0-9]*' | cut -d: -f2))"
