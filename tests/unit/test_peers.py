"""Peers are found where they are certain, and never guessed."""

from __future__ import annotations

from core.model import Link, LinkKey, NetState
from core.peers import resolve

HOST, ONE, TWO = 101, 102, 103


def end(ns: int, ifindex: int, lower: int | None, nsid: int | None = None, kind: str = "veth") -> Link:
    """Return one end of a pair."""
    return Link(ns, ifindex, f"if{ifindex}", kind, lower=lower, lower_nsid=nsid)


def nets(*links: Link, nsids: dict[int, dict[int, int]] | None = None) -> dict[int, NetState]:
    """Return the namespaces of these links, with their nsids of each other."""
    found: dict[int, NetState] = {}
    for ns in {link.ns for link in links}:
        inside = {link.ifindex: link for link in links if link.ns == ns}
        found[ns] = NetState(ns, links=inside, nsids=(nsids or {}).get(ns, {}))
    return found


def both(one: Link, other: Link) -> dict[LinkKey, LinkKey]:
    """Return a pair in both directions."""
    return {one.key: other.key, other.key: one.key}


def test_both_ends_in_one_namespace() -> None:
    one, other = end(HOST, 5, 6), end(HOST, 6, 5)
    assert resolve(nets(one, other)) == both(one, other)


def test_ends_in_two_namespaces_by_their_ids() -> None:
    one, other = end(HOST, 5, 2, nsid=0), end(ONE, 2, 5, nsid=3)
    assert resolve(nets(one, other, nsids={HOST: {0: ONE}, ONE: {3: HOST}})) == both(one, other)


def test_one_translated_id_is_enough() -> None:
    one, other = end(HOST, 5, 2, nsid=0), end(ONE, 2, 5, nsid=3)
    assert resolve(nets(one, other, nsids={HOST: {0: ONE}})) == both(one, other)
    assert resolve(nets(one, other, nsids={ONE: {3: HOST}})) == both(one, other)


def test_containers_with_equal_indexes_are_distinguished_by_nsid() -> None:
    links = [end(HOST, 5, 2, nsid=0), end(HOST, 6, 2, nsid=1), end(ONE, 2, 5, nsid=0), end(TWO, 2, 6, nsid=0)]
    found = resolve(nets(*links, nsids={HOST: {0: ONE, 1: TWO}}))
    assert found == both(links[0], links[2]) | both(links[1], links[3])


def test_without_any_id_the_indexes_must_leave_one_possibility() -> None:
    links = [end(HOST, 5, 2, nsid=0), end(HOST, 6, 2, nsid=1), end(ONE, 2, 5, nsid=0), end(TWO, 2, 6, nsid=0)]
    assert resolve(nets(*links)) == both(links[0], links[2]) | both(links[1], links[3])


def test_ambiguous_peers_are_not_guessed() -> None:
    clear = [end(HOST, 9, 7, nsid=4), end(TWO, 7, 9, nsid=0)]
    unclear = [end(HOST, 5, 2, nsid=0), end(ONE, 2, 5, nsid=0), end(TWO, 2, 5, nsid=0)]
    assert resolve(nets(*clear, *unclear)) == both(*clear)
    assert resolve(nets(end(HOST, 5, 2, nsid=0), end(TWO, 5, 2, nsid=0), end(ONE, 2, 5, nsid=0))) == {}


def test_a_translated_id_precedes_matching_indexes() -> None:
    one, elsewhere = end(HOST, 5, 2, nsid=0), end(TWO, 2, 5, nsid=0)
    assert resolve(nets(one, elsewhere, nsids={HOST: {0: ONE}})) == {}


def test_equal_indexes_on_both_sides() -> None:
    one, other = end(HOST, 2, 2, nsid=0), end(ONE, 2, 2, nsid=0)
    assert resolve(nets(one, other)) == both(one, other)


def test_an_end_with_a_hidden_peer_has_no_peer() -> None:
    assert resolve(nets(end(HOST, 5, 2, nsid=0), end(ONE, 3, 9, nsid=0), end(TWO, 4, None))) == {}


def test_only_pairs_have_peers() -> None:
    assert resolve(nets(end(HOST, 5, 6, kind="macvlan"), end(HOST, 6, 5))) == {}
    netkits = end(HOST, 5, 6, kind="netkit"), end(HOST, 6, 5, kind="netkit")
    assert resolve(nets(*netkits)) == both(*netkits)
