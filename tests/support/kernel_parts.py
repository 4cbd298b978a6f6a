"""Try the parts that not every kernel has, in a new network namespace.

That also loads the module, if there is one.
"""

from __future__ import annotations

import subprocess
import sys

_NFT = "nft add table ip t; nft 'add {} ip t {} {{ {} }}'"
_TUNNEL = "ip link add t0 type {} local 192.0.2.1 remote 192.0.2.2"
_LOAD_AT_NETFILTER = "from tests.support.netfilter_bpf import drop_program; drop_program()"
_LIST_HOOKS = "from bpf import hooks; hooks.can_list() or exit('cannot list')"
_PROBE_FUNCTIONS = "from bpf.functions import function_addresses; function_addresses()"
_ASK_TCX = "from bpf import syscall; syscall.attached(1)"
# By name: what is missing, and a shell command that fails then.
PARTS = {
    "bpf_netfilter": ("BPF programs at netfilter's hooks", f'{sys.executable} -c "{_LOAD_AT_NETFILTER}"'),
    "bridge_vlans": (
        "bridges that know VLANs (CONFIG_BRIDGE_VLAN_FILTERING)",
        "ip link add br0 type bridge vlan_filtering 1",
    ),
    "flowtable": ("nftables' flowtables", _NFT.format("flowtable", "f", "hook ingress priority 0;")),
    "force_forwarding": (
        "net.ipv6.conf.*.force_forwarding (Linux 6.17)",
        "test -e /proc/sys/net/ipv6/conf/all/force_forwarding",
    ),
    "ftp_helper": (
        "conntrack's helper for FTP",
        _NFT.format("ct helper", "h", 'type "ftp" protocol tcp;'),
    ),
    "fuse": ("FUSE", "test -c /dev/fuse"),
    "fprobe": ("fprobes (CONFIG_FPROBE)", f'{sys.executable} -c "{_PROBE_FUNCTIONS}"'),
    "gre": ("GRE tunnels", _TUNNEL.format("gre")),
    "ipip": ("IPIP tunnels", _TUNNEL.format("ipip")),
    "ipvs": ("IPVS", "modprobe -q ip_vs; test -e /proc/net/ip_vs"),
    "nfnetlink_hook": (
        "a list of netfilter's hooks (nfnetlink_hook)",
        f'{sys.executable} -c "{_LIST_HOOKS}"',
    ),
    "prio": ("the queueing discipline prio", "tc qdisc add dev lo root prio"),
    "tcx": ("tcx links (Linux 6.6)", f'{sys.executable} -c "{_ASK_TCX}"'),
    "user_namespaces": (
        "user namespaces for every user",
        "setpriv --reuid=65534 --regid=65534 --clear-groups unshare -Urmn true",
    ),
    "sit": ("SIT tunnels", _TUNNEL.format("sit")),
}


def lacking(part: str) -> str:
    """Return what is missing for this part of the kernel, "" if nothing is."""
    words, command = PARTS[part]
    tried = subprocess.run(["unshare", "--net", "sh", "-ec", command], capture_output=True, check=False)
    return f"a kernel with {words}" if tried.returncode else ""
