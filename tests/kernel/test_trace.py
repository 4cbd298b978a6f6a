"""`vnet-tui trace` and `why --probe`: packets on each link, and the comparison with the static answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.collect.snapshot import read_snapshot
from core.netlink.netns import entered
from core.probe.verify import verify
from core.reach import ask, why
from core.topology import Topology
from tests.support.host import ThrowawayHost
from tests.support.router import router
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

A, B, GATEWAY = "10.43.1.2", "10.43.2.2", "10.43.1.1"


@pytest.fixture(scope="module")
def routed() -> Iterator[ThrowawayHost]:
    """Yield a router with container a on br1 and container b on br2; port 8080 is forwarded to b."""
    with router(43) as host:
        yield host


@pytest.fixture
def clean(routed: ThrowawayHost) -> Iterator[ThrowawayHost]:
    try:
        yield routed
    finally:
        routed.run("nft flush ruleset")
        routed.run("conntrack -F", check=False)


@contextmanager
def server(host: ThrowawayHost, inside: str, port: int = 80) -> Iterator[list[tuple[Any, Any]]]:
    """Accept connections in a namespace; yield both ends of each, as the socket there sees them."""
    found: list[tuple[Any, Any]] = []
    with entered(f"/run/netns/{host.full(inside)}"):
        listener = socket.create_server(("0.0.0.0", port))

    def accept() -> None:
        while True:
            try:
                peer, address = listener.accept()
            except OSError:
                return
            found.append((address, peer.getsockname()))
            peer.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield found
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def nft(host: ThrowawayHost, rules: str) -> None:
    host.run(["nft", rules.replace(" }", ";\n}\n")])


def name(host: ThrowawayHost, short: str) -> str:
    return host.full(short)


def as_json(host: ThrowawayHost, *arguments: str) -> tuple[int, Any]:
    done = host.vnet(*arguments, "--json")
    return done.returncode, json.loads(done.stdout)


DNAT = (
    "table ip portmap { chain pre { type nat hook prerouting priority -100; "
    f"tcp dport 8080 counter dnat to {B}:80 }} }}"
)


def test_each_link_of_a_translated_packet(clean: ThrowawayHost) -> None:
    nft(clean, DNAT)
    with server(clean, "b") as accepted:
        code, found = as_json(clean, "trace", name(clean, "a"), GATEWAY, "--port", "8080/tcp")
        wait_until(lambda: accepted, "the connection")
    assert (code, found["outcome"]) == (0, "answered")
    requests = [one for one in found["sightings"] if one["role"] == "request"]
    assert [one["link"]["name"] for one in requests if one["link"]["name"].startswith("br")] == ["br1", "br2"]
    (first, *_, last) = requests
    assert (first["addresses"]["dst"], first["addresses"]["dport"]) == (GATEWAY, 8080)
    peer, own = accepted[0]
    seen = last["addresses"]
    assert ((seen["src"], seen["sport"]), (seen["dst"], seen["dport"])) == (peer, own), (
        "as b's socket sees it"
    )
    assert last["ttl"] == first["ttl"] - 1 and last["namespace"] == name(clean, "b")
    times = [one["at"] for one in found["sightings"]]
    assert times == sorted(times)
    text = clean.vnet("trace", name(clean, "a"), GATEWAY, "--port", "8080/tcp").stdout
    assert f"{GATEWAY}:8080" in text and f"{B}:80" in text


def test_probe_names_the_rule_that_the_answer_named(clean: ThrowawayHost) -> None:
    nft(
        clean,
        "table inet f { chain passing { type filter hook forward priority 0; tcp dport 80 drop } }",
    )
    listed = clean.json("nft -a -j list ruleset")["nftables"]
    (handle,) = [one["rule"]["handle"] for one in listed if "rule" in one]
    with server(clean, "b"):
        code, found = as_json(clean, "why", name(clean, "a"), name(clean, "b"), "--port", "80/tcp", "--probe")
    assert (code, found["verdict"]) == (1, "stop") and f"handle {handle}" in found["cause"]["evidence"][0]
    probed = found["probe"]
    assert probed["agrees"] is True and probed["outcome"] == "no answer" and probed["arrived"] is False
    assert any(f"inet f passing handle {handle}" in note for note in probed["notes"])
    assert "vnet-trace" not in clean.run("nft list tables")


def test_a_disagreement_is_shown(clean: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that was added after the snapshot."""
    with server(clean, "b"), entered(f"/run/netns/{clean.name}"):
        topology = Topology(read_snapshot())
        question = ask(topology, name(clean, "a"), B, "80/tcp")
        answer = why(topology, question)
        assert answer.verdict == "pass"
        assert verify(topology, answer).agrees is True
        nft(clean, "table ip f { chain passing { type filter hook forward priority 0; tcp dport 80 drop } }")
        found = verify(topology, answer)
    assert found.agrees is False and found.sentence.startswith("The probe disagrees: no answer")
    assert any("dropped by" in note for note in found.notes)


def test_refused_and_unreachable_confirm_a_stop(clean: ThrowawayHost) -> None:
    code, found = as_json(clean, "why", name(clean, "a"), name(clean, "b"), "--port", "81/tcp", "--probe")
    assert (code, found["cause"]["kind"], found["probe"]["outcome"]) == (1, "listener", "refused")
    assert found["probe"]["agrees"] is True
    code, found = as_json(clean, "why", name(clean, "a"), "10.43.2.99", "--probe")
    assert (code, found["verdict"]) == (1, "stop") and found["probe"]["outcome"] in (
        "unreachable",
        "no answer",
    )


def test_the_link_that_limits_the_size_is_named(clean: ThrowawayHost) -> None:
    clean.run("ip link set br2 mtu 700")
    try:
        code, found = as_json(clean, "trace", name(clean, "a"), name(clean, "b"), "--mtu", "--hops")
    finally:
        clean.run("ip link set br2 mtu 1500")
    assert code == 0 and found["path_mtu"]["mtu"] == 700
    assert [(one["mtu"], one["sender"]) for one in found["path_mtu"]["steps"]][-1] == (700, GATEWAY)
    assert [(one["address"], one["is_target"]) for one in found["hops"]] == [(GATEWAY, False), (B, True)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("trace", "outside", "host"), "it isn't on this host"),
        (("trace", "missing", "host"), 'can\'t find "missing"'),
        (("trace", "outside", "198.51.100.77"), "both are outside this host"),
    ],
)
def test_questions_that_no_probe_can_ask(
    clean: ThrowawayHost, arguments: tuple[str, ...], reason: str
) -> None:
    done = clean.vnet(*arguments)
    assert done.returncode == 1 and reason in done.stderr and "Try: " in done.stderr
