"""The lab host's packet filter and address translation, as a script for nft(8)."""

from __future__ import annotations

import ipaddress

from core.lab.blueprint import DROPPED, NETWORKS, PUBLISHED, UPLINK, LabNetwork, LabPublish


def ruleset(ipv6: bool = True) -> str:
    """The whole script: two tables that translate and one that filters what is forwarded."""
    tables = [_nat_table("ip"), _forward_table()]
    if ipv6:
        tables.append(_nat_table("ip6"))
    return "\n".join(tables)


def _nat_table(family: str) -> str:
    published = "\n".join(_dnat(publish) for publish in PUBLISHED if _family(publish.address) == family)
    masquerades = "\n".join(
        _masquerade(network, address)
        for network in NETWORKS if network.nat
        for address in network.addresses if _family(address) == family
    )  # fmt: skip
    loopback = "127.0.0.0/8" if family == "ip" else "::1"
    return f"""
table {family} hostnat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump published
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        {family} daddr != {loopback} fib daddr type local counter jump published
    }}
    chain published {{
{published}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
{masquerades}
    }}
}}"""


def _forward_table() -> str:
    jumps = "\n".join(
        f'        iifname "{network.bridge}" counter jump {_chain(network)}' for network in NETWORKS
    )
    chains = "\n".join(_network_chain(network) for network in NETWORKS)
    return f"""
table inet hostfw {{
{chains}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related counter accept comment "answers and known flows"
        ct state invalid counter drop comment "out of any known flow"
        oifname "{UPLINK}" ip saddr {DROPPED} counter drop comment "web2 stays in during the audit"
        ct status dnat counter accept comment "published ports"
{jumps}
        counter comment "between networks or from outside: the policy drops it"
    }}
}}"""


def _network_chain(network: LabNetwork) -> str:
    bridge = network.bridge
    # Switched packets come by here as well where br_netfilter is loaded.
    rules = [f'oifname "{bridge}" counter accept comment "inside {bridge}"']
    if network.nat:
        rules.append(f'oifname "{UPLINK}" counter accept comment "{bridge} may go out"')
    else:
        rules.append(f'counter drop comment "{bridge} is internal"')
    body = "\n".join(f"        {rule}" for rule in rules)
    return f"    chain {_chain(network)} {{\n{body}\n    }}"


def _dnat(publish: LabPublish) -> str:
    address = f"[{publish.address}]" if ":" in publish.address else publish.address
    return (
        f"        {publish.l4_proto} dport {publish.host_port} counter "
        f'dnat to {address}:{publish.port} comment "{publish.comment}"'
    )


def _masquerade(network: LabNetwork, address: str) -> str:
    subnet = ipaddress.ip_interface(address).network
    return (
        f'        {_family(address)} saddr {subnet} oifname != "{network.bridge}" counter masquerade '
        f'comment "{network.bridge} goes out as the host"'
    )


def _chain(network: LabNetwork) -> str:
    return "from_" + network.bridge.removeprefix("br-")


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"
