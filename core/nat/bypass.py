"""Published ports that a host's firewall program has no say in: they are translated before its rules for
incoming connections, which are about what the host itself takes."""

from __future__ import annotations

import re

from core.model import Firewall
from core.nat.remedies import in_place_for_others
from core.text import quoted as quote
from core.text import safe

_UFW_INPUT = re.compile("ufw6?-before-input")


def gatekeeper(firewall: Firewall) -> str:
    """The program whose rules for incoming connections are in force: "ufw", "firewalld", or "" for none."""
    if any(chain.table == "firewalld" and chain.hook == "input" for chain in firewall.chains):
        return "firewalld"
    # `ufw disable` leaves its chains, and the jumps to them, but no rule in them.
    return "ufw" if any(_UFW_INPUT.fullmatch(rule.chain) for rule in firewall.rules) else ""


def restrict_words(firewall: Firewall, l4_proto: str, host_ports: str, ipv6: bool, uplink: str) -> str:
    """The command that lets one network alone come to a published port."""
    tool, by = "ip6tables" if ipv6 else "iptables", f" -i {quote(uplink)}" if uplink else ""
    ports = safe(host_ports.replace("-", ":"))
    return (
        f"{tool} -I {in_place_for_others(firewall, ipv6)}{by} -p {l4_proto} ! -s NETWORK -m conntrack "
        f"--ctorigdstport {ports} --ctdir ORIGINAL -j DROP"
    )
