"""Run a real Docker Engine on a host with an uplink, and probe its web servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.docker.engine import DockerHost
from tests.docker.engine_folder import remove_stale

HTTPD = "httpd -f -p 80"
# Docker networks to whose addresses the world has a route via the host.
_INSIDE = ("10.192.0.0/11", "fd00:7::/32")
HOST, WORLD = "192.0.2.2", "192.0.2.1"
HOST6, WORLD6 = "fd00:2::2", "fd00:2::1"


class Site:
    """An engine's host, and the namespace `world` behind its uplink `up0`."""

    def __init__(self, engine: DockerHost, state: Path) -> None:
        self.engine, self.host = engine, engine.host
        self._environment = {"DOCKER_HOST": engine.url, "VNET_STATE": str(state)}

    def vnet(self, *words: str) -> str:
        done = self.host.vnet(*words, **self._environment)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def shown(self) -> dict[str, Any]:
        """Return the output of `show all`; its exit code is 1 with bad findings."""
        done = self.host.vnet("show", "all", "--json", **self._environment)
        assert done.returncode in (0, 1), done.stderr
        return dict(json.loads(done.stdout))

    def warnings(self, *words: str) -> list[str]:
        found: list[str] = json.loads(self.vnet(*words, "--dry-run", "--json"))["warnings"]
        return found

    def run_advice(self, advice: str) -> None:
        """Run the commands at the end of a warning or finding, unchanged."""
        commands = advice.partition("to allow it, run: ")[2]
        assert commands, advice
        self.host.run(["sh", "-c", commands])

    def reaches(self, client: str, address: str, port: int) -> bool:
        """Return whether the web server answers (with 404)."""
        at = f"[{address}]" if ":" in address else address
        ask = f"busybox wget -T1 -qO- http://{at}:{port} 2>&1"
        if client in ("world", "host"):
            return "404" in self.host.run(["sh", "-c", ask], inside=client, check=False)
        return "404" in self.engine.run("exec", client, "sh", "-c", ask, check=False)


@contextmanager
def engine_site(state: Path, forwards: bool = False, **settings: Any) -> Iterator[Site]:
    """Start an engine with these settings (of daemon.json, with `_` for `-`).

    `forwards`: the host already forwards when it starts; then Docker doesn't change the forward policy.
    """
    remove_stale()
    engine = DockerHost()
    try:
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        (engine.folder / "daemon.json").write_text(json.dumps(named))
        _world(engine)
        if forwards:
            for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
                engine.host.run(f"sysctl -qw {key}=1")
        engine.start()
        engine.import_image()
        yield Site(engine, state)
    finally:
        engine.close()


def _world(engine: DockerHost) -> None:
    host = engine.host
    host.namespace("world")
    host.run(f"ip link add up0 type veth peer name far netns {host.full('world')}")
    for inside, link, addresses in (("host", "up0", (HOST, HOST6)), ("world", "far", (WORLD, WORLD6))):
        for address, length in zip(addresses, (24, 64), strict=True):
            host.run(f"ip addr add {address}/{length} dev {link} nodad", inside=inside)
        host.run(f"ip link set {link} up", inside=inside)
    for subnet, own, beyond in zip(_INSIDE, (HOST, HOST6), (WORLD, WORLD6), strict=True):
        host.run(f"ip route add default via {beyond}")
        host.run(f"ip route add {subnet} via {own}", inside="world")
