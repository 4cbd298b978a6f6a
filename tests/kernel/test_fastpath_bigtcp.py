"""BIG TCP over IPv6: frames of more than 64 KB with a jumbo header are forwarded."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.fastpath import FastPath, Talk, two_containers_and_an_uplink
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, eventually, wait_until

pytestmark = pytest.mark.root

SIZE = 150_000
BLOCK, BLOCKS = os.urandom(1 << 20), 64
ADDRESSES = {"b": "fd09::3", "world": "2001:db8::2"}


@pytest.fixture
def host() -> Iterator[ThrowawayHost]:
    made = ThrowawayHost()
    try:
        two_containers_and_an_uplink(made)
        for inside, links in {"host": ("br0", "v-a", "v-b", "up0"), "a": ("eth0",), "b": ("eth0",)}.items():
            for link in links:
                grow(made, link, inside)
        grow(made, "eth0", "world")
        yield made
    finally:
        made.close()


def grow(host: ThrowawayHost, link: str, inside: str) -> None:
    host.run(f"ip link set {link} gso_max_size {SIZE} gro_max_size {SIZE}", inside)


def count_large(host: ThrowawayHost, inside: str) -> None:
    """Count the receiver's frames that exceed IPv6's length field."""
    host.run("nft add table ip6 watch", inside)
    host.run(["nft", "add chain ip6 watch input { type filter hook input priority 0; }"], inside)
    host.run("nft add rule ip6 watch input meta length > 65575 counter", inside)


def large(host: ThrowawayHost, inside: str) -> int:
    (counter,) = (
        item["counter"]
        for one in host.json("nft -j list chain ip6 watch input", inside)["nftables"]
        for item in one.get("rule", {}).get("expr", [])
        if "counter" in item
    )
    return int(counter["packets"])


def send(talk: Talk, blocks: int = BLOCKS) -> None:
    """Send bulk data from client to server; every byte must arrive, in order."""
    sent = hashlib.blake2b()

    def write() -> None:
        for number in range(blocks):
            block = number.to_bytes(8) + BLOCK
            sent.update(block)
            talk.client.sendall(block)

    writer = threading.Thread(target=write)
    writer.start()
    received, missing = hashlib.blake2b(), blocks * (8 + len(BLOCK))
    while missing:
        data = talk.server.recv(min(missing, 1 << 18))
        assert data, "the connection ended"
        received.update(data)
        missing -= len(data)
    writer.join(PATIENCE)
    assert received.digest() == sent.digest()


def talk_to(host: ThrowawayHost, there: str) -> Talk:
    return Talk(host, "a", there, ADDRESSES[there], family=socket.AF_INET6)


def verdicts(fast: FastPath) -> dict[str, int]:
    return dict(fast.status()["verdicts"])


def gained(before: dict[str, int], after: dict[str, int], name: str) -> int:
    return after.get(name, 0) - before.get(name, 0)


@pytest.mark.parametrize("there", ADDRESSES)
def test_bulk_data_is_forwarded_fast_and_complete(host: ThrowawayHost, there: str) -> None:
    """To a container of the bridge, and out through the masquerade with a smaller MTU."""
    if there == "world":
        host.run("ip link set eth0 mtu 1400", "a")
    count_large(host, there)
    with FastPath(host, "all") as fast:
        wait_until(fast.is_on, "the fast path")
        with talk_to(host, there) as talk:
            assert eventually(lambda: fast.count("FAST") or talk.say(5))
            before = verdicts(fast)
            send(talk)
            after = verdicts(fast)
            talk.say(5)
    assert large(host, there) > 50
    total = sum(after.values()) - sum(before.values())
    assert gained(before, after, "FAST") > 0.95 * total, (before, after)
    assert gained(before, after, "OPTIONS") == 0


@pytest.mark.parametrize("fast_path", [False, True])
def test_frames_too_big_for_the_kernel_are_left_to_it(host: ThrowawayHost, fast_path: bool) -> None:
    """When routing, the kernel counts the jumbo header in each segment of the frame.

    If segments are as large as the MTU, the fast path must not forward what the kernel refuses.
    """
    assert not too_big(host)
    with talk_to(host, "world") as talk:
        if fast_path:
            with FastPath(host, "all") as fast:
                wait_until(fast.is_on, "the fast path")
                assert eventually(lambda: fast.count("FAST") or talk.say(5))
                send(talk, 2)
                assert fast.count("MTU")
        else:
            send(talk, 2)
    assert too_big(host)


def too_big(host: ThrowawayHost) -> int:
    """Return how often the host's IPv6 refused to forward for that reason."""
    return int(host.run("nstat -asz Ip6InTooBigErrors").split()[-2])
