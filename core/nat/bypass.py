"""Published ports that a host's firewall program has no say in: they are translated before its rules for
incoming connections, which are about what the host itself takes."""

from __future__ import annotations

from core.model import Firewall
from core.nat.remedies import in_place_for_others
from core.text import quoted as quote
from core.text import safe


def gatekeeper(firewall: Firewall) -> str:
    """The program whose rules for incoming connections are in force: "ufw", "firewalld", or "" for none."""
    if any(chain.table == "firewalld" and chain.hook == "input" for chain in firewall.chains):
        return "firewalld"
    first = (rule.target for rule in firewall.rules if rule.chain == "INPUT" and rule.verdict == "jump")
    return "ufw" if any(target.startswith(("ufw-before-", "ufw6-before-")) for target in first) else ""


def restrict_words(firewall: Firewall, l4_proto: str, host_ports: str, ipv6: bool, uplink: str) -> str:
    """The command that lets one network alone come to a published port."""
    tool, by = "ip6tables" if ipv6 else "iptables", f" -i {quote(uplink)}" if uplink else ""
    ports = safe(host_ports.replace("-", ":"))
    return (
        f"{tool} -I {in_place_for_others(firewall, ipv6)}{by} -p {l4_proto} ! -s NETWORK -m conntrack "
        f"--ctorigdstport {ports} --ctdir ORIGINAL -j DROP"
    )
