"""Write the rules of Docker's DNS resolver into a container's namespace.

As Docker writes them on a user-defined network: by iptables of either kind or (since 29, if configured) by
nftables.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

ADDRESS = "127.0.0.11"
UDP, TCP = 49218, 41525  # where Docker's resolver listens
BACKENDS = ("iptables-nft", "iptables-legacy", "nft")

# As iptables-save prints it in a container.
SAVED = f"""\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER_OUTPUT - [0:0]
:DOCKER_POSTROUTING - [0:0]
[0:0] -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
[0:0] -A POSTROUTING -d 127.0.0.11/32 -j DOCKER_POSTROUTING
[0:0] -A DOCKER_OUTPUT -d 127.0.0.11/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 127.0.0.11:{TCP}
[0:0] -A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:{UDP}
[0:0] -A DOCKER_POSTROUTING -s 127.0.0.11/32 -p tcp -m tcp --sport {TCP} -j SNAT --to-source :53
[0:0] -A DOCKER_POSTROUTING -s 127.0.0.11/32 -p udp -m udp --sport {UDP} -j SNAT --to-source :53
COMMIT
"""
_NFT = f"""\
table ip docker-dns {{
	chain dns-dnat {{
		type nat hook output priority dstnat; policy accept;
		ip daddr 127.0.0.11 udp dport 53 counter dnat to 127.0.0.11:{UDP}
		ip daddr 127.0.0.11 tcp dport 53 counter dnat to 127.0.0.11:{TCP}
	}}
	chain dns-snat {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 127.0.0.11 udp sport {UDP} counter snat to :53
		ip saddr 127.0.0.11 tcp sport {TCP} counter snat to :53
	}}
}}
"""


def write_rules(namespace: str, backend: str = "iptables-nft", tcp: int = TCP, udp: int = UDP) -> None:
    """Write the rules in the network namespace at that path, by Docker's commands."""
    inside = ["nsenter", f"--net={namespace}"]
    if backend == "nft":
        subprocess.run([*inside, "nft", "-f", "-"], input=_NFT, text=True, check=True)
        return
    for command in _commands(tcp, udp):
        subprocess.run([*inside, backend, "-t", "nat", *command.split()], check=True)


def _commands(tcp: int, udp: int) -> Iterator[str]:
    """Return the commands in libnetwork/resolver_unix.go."""
    for hook in ("OUTPUT", "POSTROUTING"):
        yield f"-N DOCKER_{hook}"
        yield f"-I {hook} -d {ADDRESS} -j DOCKER_{hook}"
    for protocol, port in (("udp", udp), ("tcp", tcp)):
        destination = f"{ADDRESS}:{port}"
        yield f"-I DOCKER_OUTPUT -d {ADDRESS} -p {protocol} --dport 53 -j DNAT --to-destination {destination}"
        yield f"-I DOCKER_POSTROUTING -s {ADDRESS} -p {protocol} --sport {port} -j SNAT --to-source :53"
