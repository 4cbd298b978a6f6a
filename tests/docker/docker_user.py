"""Run commands on an engine's host, and compare Docker's state before and after."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docker.engine import IMAGE, DockerHost

MAC = "02:aa:bb:cc:dd:01"
SYSCTLS = "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
# Values that the engine chooses again, or that change over time.
FRESH = {
    "Created", "EndpointID", "SandboxID", "SandboxKey", "NetworkID", "Pid", "StartedAt", "FinishedAt",
    "LastTagTime", "Health", "DNSNames",
}  # fmt: skip


class DockerUser:
    """A user who runs vnet-tui on the engine's host."""

    def __init__(self, engine: DockerHost, state: Path) -> None:
        self.engine, self.state = engine, state

    def tries(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"DOCKER_HOST": self.engine.url, "VNET_STATE": str(self.state)}
        return self.engine.host.vnet(*words, **own, **environment)

    def types(self, *words: str) -> str:
        done = self.tries(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def inspects(self) -> dict[str, str]:
        """Return Docker's description of all networks and containers by key path."""
        networks = json.loads(self.engine.run("network", "inspect", *self._ids("network", "ls", "-q")))
        for network in networks:
            network.pop("Id")
        containers = json.loads(self.engine.run("inspect", *self._ids("ps", "-aq")))
        for one in containers:
            for end in one["NetworkSettings"]["Networks"].values():
                # Docker before 25 adds the id to the names, from its first attachment on.
                end["Aliases"] = [name for name in end["Aliases"] or () if name != one["Id"][:12]]
        named = {one["Name"]: one for one in (*networks, *containers)}
        return {" ".join(path): value for path, value in flat(named) if not FRESH & set(path)}

    def end(self, container: str, network: str) -> dict[str, Any]:
        """Return Docker's description of one attachment."""
        ends = self.engine.run("inspect", "-f", "{{json .NetworkSettings.Networks}}", container)
        return dict(json.loads(ends)[network])

    def finds(self, name: str, asked_by: str = "api") -> bool:
        """Whether Docker's DNS knows a name in a container."""
        return (
            "Address" in self.engine.run("exec", asked_by, "nslookup", name, check=False).partition("\n\n")[2]
        )

    def _ids(self, *words: str) -> list[str]:
        return self.engine.run(*words).split()


def flat(found: Any, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each value with its key path; null, {} and [] are the same to Docker."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from flat(value, *path, key)
    elif found or isinstance(found, int):
        yield path, json.dumps(found)


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the differences, without random MAC addresses.

    Those that Docker derives from an IPv4 address are compared.
    """
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
        and not (name.endswith("MacAddress") and "02:42:" not in before.get(name, "02:42:"))
    ]


def create_networks(engine: DockerHost, state: Path) -> DockerUser:
    """Create networks with containers; return the user of the host.

    One network has all settings chosen, one has all settings by Docker.
    """
    engine.run(
        "network", "create", "--subnet", "10.203.0.0/24", "--ip-range", "10.203.0.64/26",
        "--aux-address", "router=10.203.0.65", "--gateway", "10.203.0.1", "--ipv6", "--subnet", "fd00:3::/64",
        "--attachable", "--label", "com.example.tier=front", "--opt", "com.docker.network.driver.mtu=1400",
        "--opt", "com.docker.network.bridge.enable_icc=true", "app",
    )  # fmt: skip
    engine.run("network", "create", "auto")
    engine.container("api", "--network", "app")
    engine.container("front", "--network", "auto", "--network-alias", "face", "--mac-address", MAC)
    priority = ["--gw-priority", "7"] if engine.version >= (28, 0) else []
    engine.run(
        "network", "connect", "--alias", "www", "--alias", "frontend", "--ip", "10.203.0.99", "--ip6",
        "fd00:3::99", "--link-local-ip", "169.254.9.9", "--link", "api:backend", "--driver-opt", SYSCTLS,
        *priority, "app", "front",
    )  # fmt: skip
    engine.container("plain")
    engine.run("create", "--name", "later", "--network", "app", "--network-alias", "late", IMAGE, "true")
    return DockerUser(engine, state)
