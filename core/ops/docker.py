"""Operations that the Docker Engine does for us, through its API."""

from __future__ import annotations

from dataclasses import dataclass

from core.text import joined

# What tells networks that were made by us, for Docker knows no tags.
LABELS = {"vnet": "1"}


@dataclass(frozen=True, slots=True)
class DockerCreateNetwork:
    """Make a Docker network of the bridge driver; `subnets` and `gateways` in the same order."""

    name: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    internal: bool = False
    ipv6: bool = False
    mtu: int = 0
    bridge: str = ""

    def command(self) -> str:
        words = ["docker", "network", "create"]
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            words += ["--subnet", subnet, *(["--gateway", gateway] if gateway else [])]
        words += ["--internal"] if self.internal else []
        words += ["--ipv6"] if self.ipv6 else []
        for key, value in self.options().items():
            words += ["--opt", f"{key}={value}"]
        words += [word for key, value in LABELS.items() for word in ("--label", f"{key}={value}")]
        return joined([*words, self.name])

    def options(self) -> dict[str, str]:
        """The bridge driver's options."""
        options = {"com.docker.network.driver.mtu": str(self.mtu)} if self.mtu else {}
        return options | ({"com.docker.network.bridge.name": self.bridge} if self.bridge else {})

    def inverse(self) -> tuple[DockerRemoveNetwork, ...]:
        return (DockerRemoveNetwork(self),)

    def describe(self) -> str:
        return f"have Docker make the network {self.name}"


@dataclass(frozen=True, slots=True)
class DockerRemoveNetwork:
    """Remove a Docker network; `network` makes it anew."""

    network: DockerCreateNetwork

    def command(self) -> str:
        return joined(["docker", "network", "rm", self.network.name])

    def inverse(self) -> tuple[DockerCreateNetwork, ...]:
        return (self.network,)

    def describe(self) -> str:
        return f"have Docker remove the network {self.network.name}"


@dataclass(frozen=True, slots=True)
class DockerConnect:
    """Attach a container to a Docker network; addresses "" let Docker choose; `aliases` are its further names
    in Docker's DNS there. Where it does not `insist`, addresses that Docker does not let anybody choose (on
    networks whose subnet it chose itself) are left to Docker."""

    network: str
    container: str
    ipv4: str = ""
    ipv6: str = ""
    aliases: tuple[str, ...] = ()
    insist: bool = True

    def command(self) -> str:
        words = ["docker", "network", "connect"]
        words += ["--ip", self.ipv4] if self.ipv4 else []
        words += ["--ip6", self.ipv6] if self.ipv6 else []
        words += [word for alias in self.aliases for word in ("--alias", alias)]
        return joined([*words, self.network, self.container])

    def inverse(self) -> tuple[DockerDisconnect, ...]:
        return (DockerDisconnect(self),)

    def describe(self) -> str:
        return f"have Docker attach {self.container} to {self.network}"


@dataclass(frozen=True, slots=True)
class DockerDisconnect:
    """Detach a container from a Docker network; `connection` attaches it anew."""

    connection: DockerConnect

    def command(self) -> str:
        return joined(["docker", "network", "disconnect", self.connection.network, self.connection.container])

    def inverse(self) -> tuple[DockerConnect, ...]:
        return (self.connection,)

    def describe(self) -> str:
        return f"have Docker detach {self.connection.container} from {self.connection.network}"
