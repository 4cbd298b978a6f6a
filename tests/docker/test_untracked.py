"""`tune --no-track-dns` on a real engine: DNS works without conntrack."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.support import dns
from tests.support.docker_dns import ADDRESS
from tests.support.waiting import eventually, wait_until

pytestmark = pytest.mark.root
VNETS, DOCKERS = "table netdev vnet_untracked", "table ip nat"


def inside(engine: DockerHost, name: str, *words: str) -> str:
    """Return the output of a command in a container's network namespace."""
    done = subprocess.run(
        ["nsenter", "-t", str(engine.pid(name)), "-n", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


def rules(engine: DockerHost, name: str) -> list[str]:
    """Return a container's rules from nft and iptables-save, without counters."""
    saved = re.sub(r"\[\d+:\d+\]", "", inside(engine, name, "iptables-nft-save")).splitlines()
    return [
        inside(engine, name, "nft", "-s", "list", "ruleset"),
        *(line for line in saved if not line.startswith("#")),
    ]


def tables(engine: DockerHost, name: str) -> list[str]:
    return inside(engine, name, "nft", "list", "tables").splitlines()


def resolves_and_reaches(engine: DockerHost) -> bool:
    """Return whether web resolves log's name and fetches a page from it."""
    return "fetched" in engine.run("exec", "web", "wget", "-qO-", "http://log:8000/page", check=False)


class Shop:
    """Hold containers web and log on one network, and the engine's DNS server."""

    def __init__(self, engine: DockerHost, folder: Path) -> None:
        self.engine, self._folder = engine, folder
        engine.run("network", "create", "shop", "--subnet", "10.77.0.0/24")
        self._server = dns.Server(f"/run/netns/{engine.namespace}", "10.77.0.1")
        engine.container("web", "--network", "shop", "--dns", "10.77.0.1")
        serve = "mkdir /w; echo fetched > /w/page; exec httpd -f -p 8000 -h /w"
        engine.run(
            "run", "-d", "--stop-signal", "KILL", "--name", "log", "--network", "shop", "busybox:local",
            "sh", "-c", serve,
        )  # fmt: skip
        assert eventually(lambda: resolves_and_reaches(engine))

    def vnet(self, *words: str) -> None:
        environment = {"VNET_STATE": str(self._folder), "DOCKER_HOST": self.engine.url}
        done = self.engine.host.vnet(*words, **environment)
        assert done.returncode == 0, done.stderr + done.stdout

    def ask(self) -> None:
        """Query a container's address and a long external TXT record.

        From each address, by UDP and TCP.
        """
        web = f"/proc/{self.engine.pid('web')}/ns/net"
        inspected = "{{.NetworkSettings.Networks.shop.IPAddress}}"
        own, log = (self.engine.run("inspect", "-f", inspected, name) for name in ("web", "log"))
        for source in ("", "127.0.0.1", own):
            for tcp in (False, True):
                answer = dns.ask(web, ADDRESS, "log", dns.A, source=source, tcp=tcp)
                assert socket.inet_aton(log) in answer, (source, tcp)
                answer = dns.ask(web, ADDRESS, "text.example", source=source, tcp=tcp)
                assert len(answer) > len(dns.TEXT), (source, tcp)

    def tracks(self, name: str) -> bool:
        """Return whether packets of the container pass conntrack."""
        inside(self.engine, name, "conntrack", "-F")
        assert eventually(lambda: resolves_and_reaches(self.engine))
        return bool(inside(self.engine, name, "conntrack", "-L"))

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def shop(docker_host: DockerHost, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(docker_host, tmp_path)
    yield made
    made.close()


def test_names_are_resolved_and_nothing_is_tracked(shop: Shop) -> None:
    engine = shop.engine
    shop.ask()
    assert shop.tracks("web") and shop.tracks("log")
    before = rules(engine, "web")
    shop.vnet("tune", "shop", "--no-track-dns")
    assert tables(engine, "web") == tables(engine, "log") == [VNETS]
    for name in ("web", "log"):
        wait_until(lambda name=name: not shop.tracks(name), "the kernel to end its tracking")
    shop.ask()
    assert engine.run("exec", "web", "nslookup", "log.", check=False).count("Address") >= 2
    assert inside(engine, "web", "conntrack", "-L") == inside(engine, "log", "conntrack", "-L") == ""
    engine.run("restart", "log")
    assert tables(engine, "log") == [DOCKERS] and tables(engine, "web") == [VNETS]
    shop.vnet("undo")
    assert rules(engine, "web") == before
    assert eventually(lambda: resolves_and_reaches(engine))
    shop.ask()
    assert ":OUTPUT ACCEPT [0:0]" not in inside(engine, "web", "iptables-nft-save")  # conntrack is used again
    assert shop.tracks("web")


def test_the_engine_is_restarted(shop: Shop) -> None:
    """With live-restore the containers stay, and the engine writes its rules again."""
    engine = shop.engine
    engine.keep_containers(True)
    try:
        shop.vnet("tune", "shop", "--no-track-dns", "--only", "web")
        engine.stop()
        engine.start()
        assert eventually(lambda: resolves_and_reaches(engine))
        assert sorted(tables(engine, "web")) == [DOCKERS, VNETS]
        shop.ask()
        shop.vnet("tune", "shop", "--no-track-dns", "--only", "web")
        assert tables(engine, "web") == [VNETS]
        shop.ask()
        shop.vnet("tune", "shop", "--no-track-dns", "off", "--only", "web")
        assert tables(engine, "web") == [DOCKERS]
        shop.ask()
    finally:
        engine.keep_containers(False)
