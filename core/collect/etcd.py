"""Read overlay networks from etcd, by the JSON gateway of its API version 3."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.model import etcd as model
from core.model.etcd import EtcdNetwork
from core.state import StateError, boot_id, is_agent_running, read_state
from core.text import safe

SAVED = "etcd.json"
_TIMEOUT = 2.0  # seconds, for each step of an exchange
_LONGEST = 5.0  # seconds, for an answer
_MOST_BYTES = 32 << 20
_MOST_KEYS = 20_000
_MOST_HOSTS = 1000
_CHUNK = 1 << 16
_LEASE_SECONDS = 120
_QUOTED = 200  # characters of etcd's message


class EtcdError(OSError):
    """etcd doesn't answer, or refuses; the text says why.

    `uncertain`: the request may have been executed.
    """

    def __init__(self, text: str, uncertain: bool = False) -> None:
        super().__init__(text)
        self.uncertain = uncertain


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key of etcd; `lease` 0 is none, `revision` that of its last change."""

    key: str
    value: str
    lease: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Joined:
    """An overlay that this host has joined by etcd.

    `host` is its tunnel address there, `seconds` how long its lease lasts, `definition` the text that it has
    joined by.
    """

    endpoints: str
    host: str
    hostname: str
    seconds: int
    definition: str = ""


def joined_networks() -> dict[str, Joined]:
    """Return the overlays that this host has joined since boot, by name."""
    try:
        noted = read_state(SAVED)
        if noted["boot"] != boot_id():
            return {}
        return {name: Joined(**values) for name, values in noted["networks"].items()}
    except (StateError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def lease_seconds() -> int:
    """Return how long leases last: $VNET_ETCD_TTL, else two minutes."""
    given = os.environ.get("VNET_ETCD_TTL", "")
    return min(max(int(given), 2), 86400) if given.isascii() and given.isdigit() else _LEASE_SECONDS


def read_networks(wanted: Mapping[str, str]) -> dict[str, EtcdNetwork]:
    """Read the overlays that this host has joined, and those `wanted`: URLs by name."""
    new = {name: EtcdNetwork(url, seconds=lease_seconds()) for name, url in wanted.items()}
    joined = {
        name: EtcdNetwork(one.endpoints, one.host, one.hostname, stored=one.definition, seconds=one.seconds)
        for name, one in joined_networks().items()
    }
    has_agent = bool(new or joined) and is_agent_running()
    failed: dict[str, EtcdError] = {}
    return {
        name: _read(name, replace(one, has_agent=has_agent), failed)
        for name, one in {**new, **joined}.items()
    }


def _read(name: str, known: EtcdNetwork, failed: dict[str, EtcdError]) -> EtcdNetwork:
    """Read one overlay.

    The URLs in `failed` aren't asked again, as that may take seconds; a further one is added.
    """
    try:
        known = replace(known, endpoints=model.normal_endpoints(known.endpoints))
    except ValueError as error:
        why = f'"{safe(known.endpoints)}" isn\'t the address of etcd: {error}'
        return replace(known, problem=why, remedy="--etcd http://ADDRESS:2379")
    try:
        if known.endpoints in failed:
            raise failed[known.endpoints]
        values = read_prefix(known.endpoints, model.prefix_of(name))
    except EtcdError as error:
        failed[known.endpoints] = error
        return replace(known, problem=str(error), remedy="systemctl status etcd there, or another --etcd")
    text = next((one.value for one in values if one.key == model.definition_key(name)), None)
    try:
        definition = model.parse_definition(text) if text is not None else None
    except ValueError as error:
        problem = f"etcd's definition of it is invalid ({safe(str(error))})"
        return replace(known, problem=problem, remedy=f"etcdctl get {model.definition_key(name)}")
    hosts = hosts_in(name, values)
    prefixes = [ipaddress.ip_network(one) for one in (definition.subnets if definition else ())]
    leased = {
        address: host
        for address, host in leased_in(name, values).items()
        if any(ipaddress.ip_address(address) in one for one in prefixes)
    }
    return replace(known, definition=definition, stored=text or "", hosts=tuple(hosts), leased=leased)


def hosts_in(name: str, values: Sequence[KeyValue]) -> dict[str, KeyValue]:
    """Return the keys of hosts by address, without those that aren't addresses."""
    found = _below(model.host_key(name), values)
    return dict([each for each in found.items() if model.is_host(each[0])][:_MOST_HOSTS])


def leased_in(name: str, values: Sequence[KeyValue]) -> dict[str, str]:
    """Return leased addresses with their hosts, without malformed addresses."""
    found = _below(model.address_key(name), values)
    return {text: model.host_of(one.value) for text, one in found.items() if model.parse_address(text)}


def _below(start: str, values: Sequence[KeyValue]) -> dict[str, KeyValue]:
    return {one.key.removeprefix(start): one for one in values if one.key.startswith(start)}


# The API. Each function raises EtcdError.


def read_prefix(endpoints: str, prefix: str) -> list[KeyValue]:
    """Return the keys that begin with a prefix, in alphabetical order."""
    answer = call(endpoints, "kv/range", {**key_range(prefix), "limit": _MOST_KEYS})
    return _key_values(answer)


def read_key(endpoints: str, key: str) -> KeyValue | None:
    """Return a key, None if it doesn't exist."""
    return next(iter(_key_values(call(endpoints, "kv/range", {"key": _encoded(key)}))), None)


def transaction(endpoints: str, compare: Sequence[Any], success: Sequence[Any]) -> bool:
    """Execute requests if all comparisons hold; return whether they did."""
    answer = call(endpoints, "kv/txn", {"compare": compare, "success": success})
    return answer.get("succeeded") is True


def grant(endpoints: str, seconds: int) -> int:
    """Create a lease, and return its id."""
    try:
        return int(call(endpoints, "lease/grant", {"TTL": seconds})["ID"])
    except (KeyError, ValueError, TypeError) as error:
        raise _unexpected(endpoints) from error


def keep_alive(endpoints: str, lease: int) -> bool:
    """Renew a lease; return whether it still existed."""
    result = call(endpoints, "lease/keepalive", {"ID": lease}).get("result")
    return isinstance(result, dict) and bool(result.get("TTL"))


def revoke(endpoints: str, lease: int) -> None:
    """End a lease, which deletes its keys."""
    call(endpoints, "lease/revoke", {"ID": lease})


def is_absent(key: str, is_prefix: bool = False) -> dict[str, Any]:
    """Return the comparison that a key, or each with this prefix, doesn't exist."""
    named = key_range(key) if is_prefix else {"key": _encoded(key)}
    return {**named, "target": "CREATE", "result": "EQUAL", "create_revision": 0}


def has_value(key: str, value: str) -> dict[str, Any]:
    """Return the comparison that a key has a value."""
    return {"key": _encoded(key), "target": "VALUE", "result": "EQUAL", "value": _encoded(value)}


def is_unchanged(found: KeyValue) -> dict[str, Any]:
    """Return the comparison that a key is as it was read."""
    return {"key": _encoded(found.key), "target": "MOD", "result": "EQUAL", "mod_revision": found.revision}


def put(key: str, value: str, lease: int = 0) -> dict[str, Any]:
    """Return the request to set a key."""
    return {"requestPut": {"key": _encoded(key), "value": _encoded(value), "lease": lease}}


def delete(key: str) -> dict[str, Any]:
    """Return the request to delete a key."""
    return {"requestDeleteRange": {"key": _encoded(key)}}


def key_range(prefix: str) -> dict[str, Any]:
    """Return the range of all keys that begin with a prefix, which ends with a slash."""
    return {"key": _encoded(prefix), "range_end": _encoded(prefix[:-1] + chr(ord(prefix[-1]) + 1))}


def _encoded(text: str) -> str:
    return b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _decoded(text: str) -> str:
    return b64decode(text).decode("utf-8", "surrogateescape")


def _key_values(answer: Mapping[str, Any]) -> list[KeyValue]:
    try:
        return [
            KeyValue(
                _decoded(one["key"]), _decoded(one.get("value", "")), int(one.get("lease", 0)),
                int(one.get("mod_revision", 0)),
            )
            for one in answer.get("kvs", [])
        ]  # fmt: skip
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise EtcdError("etcd's answer can't be read") from error


def call(endpoints: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request to the first endpoint that answers."""
    reasons: dict[str, None] = {}
    uncertain = False
    for scheme, host, port in model.hosts_and_ports(endpoints):
        try:
            status, content = _exchange(scheme, host, port, f"/v3/{path}", json.dumps(body).encode())
        except _Unanswered as error:
            reasons[str(error)] = None
            uncertain |= error.sent
            continue
        return _answer(endpoints, status, content)
    raise EtcdError(f"etcd at {endpoints} doesn't answer ({'; '.join(reasons)})", uncertain)


def _answer(endpoints: str, status: int, content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unexpected(endpoints) from error
    if not isinstance(answer, dict):
        raise _unexpected(endpoints)
    if status != 200:
        text = safe(str(answer.get("message") or answer.get("error") or status)[:_QUOTED])
        # From 500 on it may have been executed: "request timed out" has the status 503.
        raise EtcdError(f"etcd at {endpoints} refused: {text}", uncertain=status >= 500)
    return answer


def _unexpected(endpoints: str) -> EtcdError:
    return EtcdError(f"what answers at {endpoints} isn't etcd 3.4 or newer")


class _Unanswered(Exception):
    """There is no answer; `sent`: the request may have arrived."""

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


def _exchange(scheme: str, host: str, port: int, path: str, body: bytes) -> tuple[int, bytes]:
    from http.client import HTTPConnection, HTTPException, HTTPSConnection  # takes 20 ms

    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    connection, sent = kind(host, port, timeout=_TIMEOUT), False
    try:
        connection.connect()
        sent = True
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content, deadline = bytearray(), time.monotonic() + _LONGEST
        while chunk := response.read1(_CHUNK):  # read() would wait for the whole chunk
            content += chunk
            if len(content) > _MOST_BYTES:
                raise _Unanswered("its answer is too large", sent)
            if time.monotonic() > deadline:
                raise TimeoutError
        return response.status, bytes(content)
    except (OSError, HTTPException) as error:
        reason = "it took too long" if isinstance(error, TimeoutError) else _reason(error)
        raise _Unanswered(safe(reason), sent) from error
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:_QUOTED]
