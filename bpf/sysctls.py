"""The sysctls that the fast path reads (Documentation/networking/nf_conntrack-sysctl.rst)."""

from __future__ import annotations

from pathlib import Path

FORWARD_PRIORITY = "net.ipv4.ip_forward_update_priority"
_TCP_TIMEOUT = "net.netfilter.nf_conntrack_tcp_timeout_established"
_UDP_TIMEOUT = "net.netfilter.nf_conntrack_udp_timeout_stream"


def _path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def read(name: str) -> str:
    """A sysctl of this network namespace, "" where this kernel has none of that name."""
    try:
        return _path(name).read_text().strip()
    except OSError:
        return ""


def timeouts() -> tuple[int, int]:
    """How long conntrack keeps an idle TCP connection and UDP stream, in ms."""
    tcp, udp = read(_TCP_TIMEOUT) or "432000", read(_UDP_TIMEOUT) or "120"
    return min(int(tcp) * 1000, 0xFFFFFFFF), min(int(udp) * 1000, 0xFFFFFFFF)


def calls_iptables() -> tuple[bool, bool]:
    """Whether br_netfilter shows bridged IPv4 and IPv6 to iptables, on every bridge."""
    found = (read(f"net.bridge.bridge-nf-call-{name}") == "1" for name in ("iptables", "ip6tables"))
    return next(found), next(found)
