"""The lab as data: networks, containers, their traffic, and deliberate faults."""

from __future__ import annotations

from dataclasses import dataclass

HOSTNAME = "demo-lab"
INTERNET = "internet"
UPLINK = "eth0"
UPLINK_ADDRESSES = ("192.0.2.10/24", "2001:db8::10/64")
UPLINK_GATEWAYS = ("192.0.2.1", "2001:db8::1")

# Addresses of servers in the internet, on lo: an IPv4 prefix is local as a whole, an IPv6 prefix isn't.
INTERNET_ADDRESSES = (
    "198.51.100.1/24", "203.0.113.1/24", "2001:db8:80::80/128", "2001:db8:80::53/128", "2001:db8:77::9/128",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """A bridge of the host.

    `addresses` are those of the bridge, with prefix length. With `nat` its containers reach the uplink,
    masqueraded; without it the network is internal.
    """

    bridge: str
    addresses: tuple[str, ...]
    nat: bool = True
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class LabPort:
    """A veth pair from a container to a bridge; `inside` is its name in the container."""

    bridge: str
    addresses: tuple[str, ...]
    inside: str = "eth0"
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class LabContainer:
    """A process in pid, mount, uts and ipc namespaces of its own.

    Its network namespace is a new one with `ports` (none: isolated), that of the container `joins`, or the
    host's with `host_network`. With `joins_old` the joined container is recreated, in another namespace,
    after this one has joined. `command` is the command line that the process shows; `jobs` are what it does,
    see `core.lab.traffic`.
    """

    name: str
    command: str
    ports: tuple[LabPort, ...] = ()
    joins: str = ""
    host_network: bool = False
    joins_old: bool = False
    jobs: tuple[str, ...] = ()

    @property
    def own_netns(self) -> bool:
        """Return whether it has a network namespace of its own, with the same name."""
        return not (self.joins or self.host_network)


@dataclass(frozen=True, slots=True)
class LabPublishedPort:
    """A published port of the host; `address` and `port` are the container's."""

    l4_proto: str
    host_port: int
    address: str
    port: int
    comment: str


NETWORKS = (
    LabNetwork("br-shop", ("172.18.0.1/16",)),
    LabNetwork("br-blog", ("172.19.0.1/24", "fd19:b10c::1/64"), mtu=1400),
    LabNetwork("br-data", ("10.89.0.1/24",), nat=False),
)

# Fault: this bridge has a subnet within br-shop's.
OVERLAP = LabNetwork("br-old", ("172.18.240.1/20",), nat=False)

# Fault: a forgotten rule keeps this container from the uplink.
DROPPED_ADDRESS = "172.18.0.3"

PUBLISHED = (
    LabPublishedPort("tcp", 8080, "172.18.0.2", 80, "shop front page on web1"),
    LabPublishedPort("tcp", 8081, "172.18.0.3", 80, "shop admin on web2"),
    LabPublishedPort("udp", 3478, "172.18.0.4", 3478, "events for api"),
    LabPublishedPort("tcp", 8090, "172.19.0.2", 80, "blog"),
    LabPublishedPort("tcp", 8090, "fd19:b10c::2", 80, "blog over IPv6"),
)

CONTAINERS = (
    LabContainer(
        "web1", "nginx -c /etc/nginx/nginx.conf", (LabPort("br-shop", ("172.18.0.2/16",)),),
        jobs=(
            "serve-http 80",
            "http 172.18.0.4 8000 size=1500 every=0.4 keep=500",
            "udp 198.51.100.53 53 size=60 every=2 keep=1",
        ),
    ),
    LabContainer(
        "web2", "nginx -c /etc/nginx/nginx.conf", (LabPort("br-shop", ("172.18.0.3/16",)),),
        jobs=(
            "serve-http 80",
            "http 172.18.0.4 8000 size=800 every=1 keep=30",
            "http 203.0.113.80 443 size=500 every=3 keep=1",
        ),
    ),
    LabContainer(
        "api", "gunicorn shop.api:app",
        (LabPort("br-shop", ("172.18.0.4/16",)), LabPort("br-data", ("10.89.0.4/24",), inside="eth1")),
        jobs=(
            "serve-http 8000",
            "serve-udp 172.18.0.4 3478",
            "http 10.89.0.2 5432 size=2500 every=0.3 keep=2000",
            "udp 10.89.0.3 11211 size=120 every=0.5 keep=2000",
            "http 203.0.113.80 443 size=4000 every=2 keep=5",
        ),
    ),
    LabContainer(
        "db", "postgres -D /var/lib/postgresql/data", (LabPort("br-data", ("10.89.0.2/24",)),),
        jobs=("serve-http 5432",),
    ),
    # Fault: this sidecar joined a `cache` container that no longer exists.
    LabContainer(
        "cache-stats", "redis_exporter", joins="cache", joins_old=True,
        jobs=("http 10.89.0.3 6379 size=300 every=3 keep=1",),
    ),
    LabContainer(
        "cache", "redis-server *:6379", (LabPort("br-data", ("10.89.0.3/24",)),),
        jobs=("serve-http 6379", "serve-udp 10.89.0.3 11211"),
    ),
    # Fault: its eth0 has MTU 1500, its bridge and its bridge port have 1400.
    LabContainer(
        "blog", "php-fpm --nodaemonize", (LabPort("br-blog", ("172.19.0.2/24", "fd19:b10c::2/64")),),
        jobs=(
            "serve-http 80",
            "http 2001:db8:80::80 443 size=20000 every=1 keep=200",
            "udp 198.51.100.53 53 size=1472 every=5 keep=1",
            "udp 2001:db8:80::53 53 size=70 every=4 keep=1",
            "http 203.0.113.80 443 size=1500 every=2 keep=4",
        ),
    ),
    LabContainer("vault", "vault server", jobs=("serve-http 8200",)),
    LabContainer(
        "web1-log", "fluent-bit -c /etc/fluent-bit.conf", joins="web1",
        jobs=("udp 203.0.113.14 514 size=300 every=1 keep=500",),
    ),
    LabContainer(
        "monitor", "blackbox", host_network=True,
        jobs=(
            "ping 192.0.2.1 every=1",
            "ping 172.18.0.2 every=2",
            "ping 2001:db8::1 every=3",
            "http 172.18.0.3 80 size=200 every=5 keep=1",
        ),
    ),
    LabContainer(
        INTERNET, "internet",
        jobs=(
            "serve-http 443",
            "serve-udp 198.51.100.53 53",
            "serve-udp 2001:db8:80::53 53",
            "serve-udp 203.0.113.14 514",
            "http 192.0.2.10 8080 size=12000 every=0.5 keep=12 from=203.0.113.77",
            "http 192.0.2.10 8080 size=6000 every=0.7 keep=8 from=198.51.100.201",
            "http 192.0.2.10 8081 size=3000 every=1.5 keep=4 from=198.51.100.33",
            "http 192.0.2.10 8090 size=9000 every=1 keep=6 from=203.0.113.140",
            "http 2001:db8::10 8090 size=8000 every=1 keep=10 from=2001:db8:77::9",
            "udp 192.0.2.10 3478 size=200 every=1 keep=20 from=203.0.113.9",
        ),
    ),
)  # fmt: skip


READY = "ready"  # the supervisor's last line of output; each line before it is a step


@dataclass(frozen=True, slots=True)
class LabSettings:
    """Options of the lab.

    `traffic`: clients send traffic (servers always listen). `namespaces`: number of additional named
    namespaces, each with `lo` and an `eth0` whose peer is on the lab's host. `changes`: interval of a
    harmless change in seconds (0: never). `healthy` leaves out the demo's deliberate faults; `faults` are
    names of `core.lab.faults` that are injected at the end.

    Of several hosts (core.lab.hosts): `host` is the number of this one, 0 for their underlay, and `ranges`
    are those of the hosts in the overlay, none for a single lab. A host is connected to the network namespace
    of the file descriptor `underlay`; with `frr` it runs FRRouting. With `etcd` the underlay runs etcd.
    """

    traffic: bool = True
    namespaces: int = 0
    changes: float = 0.0
    healthy: bool = False
    faults: tuple[str, ...] = ()
    host: int = 0
    ranges: tuple[str, ...] = ()
    underlay: int = -1
    frr: bool = False
    etcd: bool = False
