"""The sysctls that the fast path reads (Documentation/networking/nf_conntrack-sysctl.rst)."""

from __future__ import annotations

from pathlib import Path

FORWARD_PRIORITY = "net.ipv4.ip_forward_update_priority"
_TCP_TIMEOUT = "net.netfilter.nf_conntrack_tcp_timeout_established"
_TCP_UNANSWERED = "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged"
_UDP_TIMEOUT = "net.netfilter.nf_conntrack_udp_timeout_stream"


def _path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def read(name: str) -> str:
    """A sysctl of this network namespace, "" where this kernel has none of that name."""
    try:
        return _path(name).read_text().strip()
    except OSError:
        return ""


def timeouts() -> dict[str, int]:
    """How long conntrack keeps an idle TCP connection, one that waits for an acknowledgement, and a UDP
    stream, in ms, by the names that layout.CONFIG has for them."""
    tcp, udp = _milliseconds(_TCP_TIMEOUT, 432_000), _milliseconds(_UDP_TIMEOUT, 120)
    unanswered = min(tcp, _milliseconds(_TCP_UNANSWERED, 300))
    return {"tcp_timeout": tcp, "tcp_unanswered": unanswered, "udp_timeout": udp}


def _milliseconds(name: str, default: int) -> int:
    return min(int(read(name) or default) * 1000, 0xFFFFFFFF)


def calls_iptables() -> tuple[bool, bool]:
    """Whether br_netfilter shows bridged IPv4 and IPv6 to iptables, on every bridge."""
    found = (read(f"net.bridge.bridge-nf-call-{name}") == "1" for name in ("iptables", "ip6tables"))
    return next(found), next(found)
