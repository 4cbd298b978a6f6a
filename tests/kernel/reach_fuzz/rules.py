"""Add random rules: those of a usual firewall, and any others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kernel.reach_fuzz.cases import Case

_BACKENDS = ("none", "nft", "nft", "iptables-nft", "iptables-legacy")


def add(case: Case, rng: random.Random) -> None:
    """Add NAT for bridges, published ports, a forward policy and random rules."""
    backend = rng.choice(_BACKENDS)
    _publish(case, rng)
    strict = rng.random() < 0.5
    if backend == "nft":
        _nft_base(case, strict, rng)
    elif backend != "none":
        _iptables_base(case, strict, rng, backend)
    else:
        case.published = []
    for _ in range(rng.choice((0, 1, 2, 4))):
        _nft_extra(case, rng)
    if backend.startswith("iptables"):
        for _ in range(rng.choice((0, 1, 2, 3))):
            _iptables_extra(case, rng, backend)
    if rng.random() < 0.3:
        _policy(case, rng)


def _publish(case: Case, rng: random.Random) -> None:
    for number in range(rng.choice((0, 1, 2, 3))):
        one = rng.choice(case.containers)
        protocol, port = rng.choice((("tcp", 80), ("udp", 53)))
        if one.addresses and one.links[0][0]:
            case.published.append((8080 + number, protocol, rng.choice(one.addresses), port))


def _nft_base(case: Case, strict: bool, rng: random.Random) -> None:
    lines = ["add table inet fw", "add table ip nat", "add table ip6 nat"]
    policy = "drop" if strict else "accept"
    lines.append(f"add chain inet fw forward {{ type filter hook forward priority 0; policy {policy}; }}")
    for family in ("ip", "ip6"):
        lines += [
            f"add chain {family} nat pre {{ type nat hook prerouting priority dstnat; }}",
            f"add chain {family} nat out {{ type nat hook output priority dstnat; }}",
            f"add chain {family} nat post {{ type nat hook postrouting priority srcnat; }}",
        ]
    lines.append("add rule inet fw forward ct state established,related accept")
    if rng.random() < 0.7:
        lines.append("add rule inet fw forward ct status dnat accept")
    for bridge, kind in case.bridges:
        net = bridge.removeprefix("br")
        if kind == "nat":
            lines.append(f'add rule ip nat post ip saddr 10.2{net}.0.0/24 oifname != "{bridge}" masquerade')
            lines.append(f'add rule ip6 nat post ip6 saddr fd00:2{net}::/64 oifname "eth0" masquerade')
            lines.append(f'add rule inet fw forward iifname "{bridge}" accept')
        elif kind == "routed":
            lines.append(f'add rule inet fw forward iifname "{bridge}" oifname "eth0" accept')
            lines.append(f'add rule inet fw forward oifname "{bridge}" meta l4proto {{ tcp, icmp }} accept')
        else:
            lines.append(f'add rule inet fw forward oifname "{bridge}" iifname != "{bridge}" drop')
    for port, protocol, address, to_port in case.published:
        family, to = ("ip6", f"[{address}]:{to_port}") if ":" in address else ("ip", f"{address}:{to_port}")
        local = "fib daddr type local " if rng.random() < 0.7 else ""
        for chain in ("pre", "out") if rng.random() < 0.7 else ("pre",):
            lines.append(f"add rule {family} nat {chain} {local}{protocol} dport {port} dnat to {to}")
        if rng.random() < 0.5:
            lines.append(f"add rule {family} nat post {family} daddr {address} ct status dnat masquerade")
    case.commands += ["nft -f - <<'END'\n" + "\n".join(lines) + "\nEND"]


def _tools(backend: str) -> tuple[str, str]:
    return ("iptables-nft", "ip6tables-nft") if backend == "iptables-nft" else (
        "iptables-legacy", "ip6tables-legacy",
    )  # fmt: skip


def _iptables_base(case: Case, strict: bool, rng: random.Random, backend: str) -> None:
    for tool, family in zip(_tools(backend), (4, 6), strict=True):
        run = case.commands.append
        run(f"{tool} -P FORWARD {'DROP' if strict else 'ACCEPT'}")
        run(f"{tool} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
        if rng.random() < 0.7:
            run(f"{tool} -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT")
        run(f"{tool} -N CONTAINERS")
        run(f"{tool} -A FORWARD -j CONTAINERS")
        for bridge, kind in case.bridges:
            net = bridge.removeprefix("br")
            subnet = f"10.2{net}.0.0/24" if family == 4 else f"fd00:2{net}::/64"
            if kind == "nat":
                run(f"{tool} -t nat -A POSTROUTING -s {subnet} ! -o {bridge} -j MASQUERADE")
                run(f"{tool} -A CONTAINERS -i {bridge} -j ACCEPT")
            elif kind == "routed":
                run(f"{tool} -A CONTAINERS -o {bridge} -p tcp -m multiport --dports 80,443 -j ACCEPT")
                run(f"{tool} -A CONTAINERS -i {bridge} -o eth0 -j ACCEPT")
            else:
                run(f"{tool} -A CONTAINERS -o {bridge} ! -i {bridge} -j DROP")
        for port, protocol, address, to_port in case.published:
            if (":" in address) != (family == 6):
                continue
            to = f"[{address}]:{to_port}" if family == 6 else f"{address}:{to_port}"
            local = "-m addrtype --dst-type LOCAL " if rng.random() < 0.7 else ""
            for chain in ("PREROUTING", "OUTPUT") if rng.random() < 0.7 else ("PREROUTING",):
                run(
                    f"{tool} -t nat -A {chain} {local}-p {protocol} -m {protocol} --dport {port} "
                    f"-j DNAT --to-destination {to}"
                )
            if rng.random() < 0.5:
                run(f"{tool} -t nat -A POSTROUTING -d {address} -s {address} -j MASQUERADE")


def _addresses(case: Case) -> list[str]:
    return [address for one in case.containers for address in one.addresses] + ["192.0.2.1", "203.0.113.80"]


def _links(case: Case) -> list[str]:
    return ["eth0", *(bridge for bridge, _ in case.bridges)]


def _matches(case: Case, rng: random.Random, hook: str, family: str) -> str:
    """Return one or two random matches of nft."""
    return " ".join(_match(case, rng, hook, family) for _ in range(rng.choice((1, 1, 2))))


def _match(case: Case, rng: random.Random, hook: str, family: str) -> str:
    address = rng.choice(_addresses(case))
    if family == "ip":
        address = rng.choice([one for one in _addresses(case) if ":" not in one])
    ip = "ip6" if ":" in address else "ip"
    link = rng.choice(_links(case))
    options = [
        f"{ip} saddr {address}",
        f"{ip} daddr {address}",
        f"{ip} daddr != {address}",
        "tcp dport { 80, 443 }",
        "tcp dport 80-90",
        "udp dport 53",
        "th dport { 22, 53, 8080 }",
        "meta l4proto { tcp, udp }",
        "meta l4proto icmp",
    ]
    if family != "bridge":
        options += [
            "ct state new",
            "ct state invalid",
            "ct state { established, related }",
            "ct status dnat",
            "ct direction reply",
            "meta mark 7",
            "meta mark & 0x1 == 0x1",
        ]
    if family == "ip":
        options += ["ip protocol udp", "icmp type echo-request", "ip daddr 10.20.0.0/16"]
    if hook in ("prerouting", "input", "forward") and family != "bridge":
        options += [f'iifname "{link}"', f'iifname != "{link}"', 'iifname "br*"']
    if hook in ("postrouting", "output", "forward") and family != "bridge":
        options += [f'oifname "{link}"', f'oifname {{ "{link}", "lo" }}']
    if hook in ("prerouting", "input", "output") and family != "bridge":
        options += ["fib daddr type local", "fib daddr type != local"]
    return rng.choice(options)


_HOOKS = {
    "inet": ("prerouting", "input", "forward", "output", "postrouting"),
    "ip": ("prerouting", "input", "forward", "output", "postrouting"),
    "bridge": ("prerouting", "input", "forward", "output", "postrouting"),
}


def _nft_extra(case: Case, rng: random.Random) -> None:
    """Add a chain with random rules, on the host or in a container."""
    family = rng.choice(("inet", "inet", "ip", "bridge", "netdev"))
    place = rng.choice(["", "", "", rng.choice(case.containers).name])
    table, number = f"t{rng.randrange(10**6)}", rng.choice((-300, -150, -10, 10, 150))
    if family == "netdev":
        ports = [f"v{one.name}0" for one in case.containers if one.name != "mac"]
        link = "eth0" if place else rng.choice(["eth0", *ports])
        hook, chain = "ingress", f"type filter hook ingress device {link} priority 0;"
        known = "bridge"
    else:
        family = "inet" if place and family == "bridge" else family
        hook, known = rng.choice(_HOOKS[family]), family
        chain = f"type filter hook {hook} priority {number};"
        if hook == "output" and family == "ip" and rng.random() < 0.5:
            chain = f"type route hook output priority {number};"
    lines = [f"add table {family} {table}", f"add chain {family} {table} sub"]
    lines.append(f"add chain {family} {table} base {{ {chain} }}")
    address = rng.choice([one for one in _addresses(case) if ":" not in one])
    lines.append(f"add set {family} {table} hosts {{ type ipv4_addr; elements = {{ {address} }}; }}")
    for _ in range(rng.choice((1, 2, 3))):
        lines.append(f"add rule {family} {table} {_nft_rule(case, rng, hook, known)}")
    script = "nft -f - <<'END'\n" + "\n".join(lines) + "\nEND"
    case.commands.append(f"nsenter --net=/run/netns/{place} {script}" if place else script)


def _nft_rule(case: Case, rng: random.Random, hook: str, family: str) -> str:
    chain = rng.choice(("base", "base", "base", "sub"))
    matches = _matches(case, rng, hook, family)
    verdicts = ["drop", "drop", "accept", "counter", "return"]
    if chain == "base":
        verdicts += ["jump sub", "goto sub"]
    if family != "bridge":
        verdicts += ["meta mark set 7", "meta mark set 0x3"]
        verdicts += ["reject"] if hook in ("input", "forward", "output") else []
    if rng.random() < 0.2:
        return f"{chain} ip daddr @hosts {rng.choice(('drop', 'counter', 'accept'))}"
    if rng.random() < 0.15:
        return f"{chain} tcp dport vmap {{ 80 : {rng.choice(('drop', 'accept'))}, 443 : accept, 22 : drop }}"
    return f"{chain} {matches} {rng.choice(verdicts)}"


def _iptables_extra(case: Case, rng: random.Random, backend: str) -> None:
    address = rng.choice(_addresses(case))
    tool = _tools(backend)[":" in address]
    table, chain = rng.choice(
        (
            ("filter", "FORWARD"), ("filter", "INPUT"), ("filter", "OUTPUT"), ("raw", "PREROUTING"),
            ("mangle", "PREROUTING"), ("mangle", "OUTPUT"), ("mangle", "POSTROUTING"),
            ("filter", "CONTAINERS"),
        )
    )  # fmt: skip
    link = rng.choice(_links(case))
    options = [
        f"-s {address}", f"! -d {address}", f"-d {address}",
        "-p tcp -m tcp --dport 80", "-p tcp -m multiport --dports 22,80,443", "-p udp -m udp ! --dport 53",
        "-m addrtype --dst-type LOCAL", "-m mark --mark 0x7", "-m mark ! --mark 0x1/0x1",
    ]  # fmt: skip
    options += ["-m conntrack --ctstate NEW", "-m conntrack --ctstate INVALID"] if table != "raw" else []
    options += [f"-i {link}"] if chain in ("FORWARD", "INPUT", "PREROUTING") else []
    options += [f"-o {link}", f"! -o {link}"] if chain in ("FORWARD", "OUTPUT", "POSTROUTING") else []
    target = rng.choice(("DROP", "DROP", "ACCEPT", "RETURN"))
    if table == "mangle" and rng.random() < 0.5:
        target = rng.choice(("MARK --set-mark 0x7", "MARK --set-xmark 0x1/0x1"))
    verb = rng.choice(("-I", "-A"))
    case.commands.append(f"{tool} -t {table} {verb} {chain} {rng.choice(options)} -j {target}")


def _policy(case: Case, rng: random.Random) -> None:
    address = rng.choice([one for one in _addresses(case) if ":" not in one])
    case.commands += [
        rng.choice(
            (
                "ip route add default via 192.0.2.1 table 100",
                "ip route add blackhole default table 100",
                "ip route add throw default table 100",
                "ip route add 10.20.0.0/24 dev br0 table 100; ip route add default via 192.0.2.1 table 100",
            )
        ),
        rng.choice(
            (
                f"ip rule add from {address} lookup 100 prio 100",
                f"ip rule add to {address} lookup 100 prio 100",
                "ip rule add fwmark 7 lookup 100 prio 100",
                "ip rule add fwmark 0x1/0x1 lookup 100 prio 100",
                "ip rule add iif br0 lookup 100 prio 100",
                "ip rule add iif eth0 lookup main suppress_prefixlength 0 prio 99",
                f"ip rule add not from {address} lookup 100 prio 100",
                f"ip rule add from {address} prio 100 unreachable",
                "ip rule add from all ipproto udp dport 53 lookup 100 prio 100",
                "ip rule add prio 90 iif lo goto 32766",
            )
        ),
    ]
