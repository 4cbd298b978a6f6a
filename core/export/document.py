"""The JSON document of one or all topics, given out piece by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from core.codec import plain
from core.diagnose import findings
from core.export import flows, objects
from core.export.objects import neighbours, routes, rules, tables
from core.topology import Topology

SCHEMA = 1

Scope = Collection[int] | None
Items = Callable[[Topology, Scope], Iterator[str]]


def _dumped(items: Callable[[Topology, Scope], Iterator[dict[str, Any]]]) -> Items:
    def lines(topology: Topology, scope: Scope) -> Iterator[str]:
        return map(_ENCODE, items(topology, scope))

    return lines


_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

# The lists of each topic; each item is one line of the document.
TOPICS: Mapping[str, Mapping[str, Items]] = {
    "namespaces": {"namespaces": _dumped(objects.namespaces)},
    "links": {"links": _dumped(objects.links)},
    "bridges": {"bridges": _dumped(objects.bridges), "ovs": _dumped(objects.ovs)},
    "veths": {"veths": _dumped(objects.veths)},
    "containers": {"containers": _dumped(objects.containers)},
    "networks": {"networks": _dumped(objects.networks)},
    "nat": {"nat": _dumped(objects.nat)},
    "conntrack": {"conntrack": flows.flows, "conntrack_tables": _dumped(tables)},
    "routes": {
        "routes": _dumped(routes),
        "rules": _dumped(rules),
        "neighbours": _dumped(neighbours),
    },
}


def document(topology: Topology, topics: Collection[str], scope: Scope = None) -> Iterator[str]:
    """The pieces of one JSON object: schema, taken_at, host, the topics' lists, with all topics the findings,
    and the problems.

    `scope` holds the inodes of the namespaces whose things are wanted, None for all. Each item stands on a
    line of its own, so that the whole is never held in memory.
    """
    snapshot = topology.snapshot
    host = _ENCODE(plain(snapshot.host))
    yield f'{{"schema":{SCHEMA},"taken_at":{_ENCODE(snapshot.taken_at)},"host":{host}'
    for topic in topics:
        for name, items in TOPICS[topic].items():
            yield f',\n"{name}":['
            yield from _lines(items(topology, scope))
            yield "\n]"
    if set(topics) >= set(TOPICS):
        yield ',\n"findings":['
        yield from _lines(_ENCODE(plain(finding)) for finding in findings(topology))
        yield "\n]"
    yield ',\n"problems":['
    wanted = (one for one in snapshot.problems if scope is None or one.ns is None or one.ns in scope)
    yield from _lines(_ENCODE(plain(problem)) for problem in wanted)
    yield "\n]}\n"


def _lines(items: Iterator[str]) -> Iterator[str]:
    before = "\n"
    for item in items:
        yield before + item
        before = ",\n"
