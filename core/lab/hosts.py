"""Several lab hosts as data: their underlay, containers and traffic."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from core.lab.blueprint import LabContainer

MOST_HOSTS = 9
UNDERLAY = "underlay"
UNDERLAY_ADDRESSES = ("192.0.2.1/24", "198.51.100.1/24", "203.0.113.1/24")
GATEWAY = "192.0.2.1"
ETCD = f"http://{GATEWAY}:2379"
OVERLAY = "shop"
LOCAL = "front"
LOCAL_SUBNET = "172.18.0.0/24"  # the same on each host, as it is masqueraded
PROXY_ADDRESS = "172.18.0.2"
PUBLISHED_PORT = 8080

# The second container of a host: name, command and port of its server; of further hosts that of _WORKER.
_SERVICES = (
    ("api", "gunicorn shop.api:app", 8000),
    ("db", "postgres -D /var/lib/postgresql/data", 5432),
    ("cache", "redis-server *:6379", 6379),
)
_WORKER = ("worker", "celery -A shop worker", 5555)


def hostname(host: int) -> str:
    """Return the name of a host; numbers start with 1."""
    return f"demo-{host}"


def underlay_address(host: int) -> str:
    """Return a host's address in the underlay."""
    return f"192.0.2.{10 + host}"


def service(host: int) -> tuple[str, str, int]:
    """Return name, command and port of the server that is a host's second container."""
    if host <= len(_SERVICES):
        return _SERVICES[host - 1]
    name, command, port = _WORKER
    return f"{name}{host}", command, port


def overlay_members(host: int, ranges: Sequence[str]) -> dict[str, str]:
    """Return the addresses of a host's containers in the overlay, by name.

    `ranges` are the parts of the overlay's subnet that the hosts assign, in their order.
    """
    own = ipaddress.ip_network(ranges[host - 1])
    return {f"web{host}": str(own[1]), service(host)[0]: str(own[2])}


def containers(host: int, ranges: Sequence[str]) -> tuple[LabContainer, ...]:
    """Return the containers of a host; `ranges` as in `overlay_members`."""
    addresses: dict[str, str] = {}
    for each in range(1, len(ranges) + 1):
        addresses |= overlay_members(each, ranges)
    name, command, port = service(host)
    following = host % len(ranges) + 1
    calls = [one for one in ("db", "cache") if one in addresses and one != name]
    ports = {one: number for one, _, number in _SERVICES}
    return (
        LabContainer(
            f"proxy{host}", "haproxy -f /etc/haproxy.cfg",
            jobs=(
                "serve-http 80",
                "http 203.0.113.1 443 size=1500 every=2 keep=5",
                "udp 198.51.100.1 53 size=60 every=2 keep=1",
            ),
        ),
        LabContainer(
            f"web{host}", "nginx -c /etc/nginx/nginx.conf",
            jobs=(
                "serve-http 80",
                f"http {addresses['api']} 8000 size=1500 every=0.5 keep=200",
                f"ping {addresses[f'web{following}']} every=2",
            ),
        ),
        LabContainer(
            name, command,
            jobs=(
                f"serve-http {port}",
                *(f"http {addresses[one]} {ports[one]} size=2500 every=0.7 keep=500" for one in calls),
            ),
        ),
    )  # fmt: skip


def internet(count: int) -> LabContainer:
    """Return what sends and answers outside of the hosts: it runs in the underlay."""
    clients = (
        f"http {underlay_address(host)} {PUBLISHED_PORT} size=6000 every=0.7 keep=10 from=203.0.113.1"
        for host in range(1, count + 1)
    )
    return LabContainer(
        "internet",
        "internet",
        host_network=True,
        jobs=("serve-http 443", "serve-udp 198.51.100.1 53", *clients),
    )


def desired_state(host: int, ranges: Sequence[str], evpn: bool, etcd: bool) -> str:
    """Return the file for `vnet-tui apply` that makes a host's networks.

    `evpn`: FRRouting of the hosts finds the tunnels. `etcd`: the hosts find each other there; without it they
    are listed.
    """
    addresses = [underlay_address(each) for each in range(1, len(ranges) + 1)]
    others = ", ".join(f'"{one}"' for one in addresses)
    listed = f"{'peers' if evpn else 'remotes'} = [{others}]"
    known = f'etcd = "{ETCD}"' if etcd else listed
    known += "\nevpn = true" if evpn else ""
    attached = {f"proxy{host}": (LOCAL, PROXY_ADDRESS)}
    attached |= {name: (OVERLAY, address) for name, address in overlay_members(host, ranges).items()}
    tables = [
        f'[network.{LOCAL}]\nsubnets = ["{LOCAL_SUBNET}"]',
        f'[network.{OVERLAY}]\nkind = "overlay"\n{known}',
        *(
            f'[[attach]]\ncontainer = "{name}"\nnetwork = "{network}"\naddresses = ["{address}"]'
            for name, (network, address) in attached.items()
        ),
        f'[[publish]]\ncontainer = "proxy{host}"\nhost_ports = "{PUBLISHED_PORT}"\ncontainer_ports = "80"',
    ]
    return "\n\n".join(tables) + "\n"
