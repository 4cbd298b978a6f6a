"""The systemd unit that runs the agent: the program that prints it, as it is installed (systemd.exec(5))."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGES = Path(__file__).parents[2]  # the folder that holds `tui`
_STATE = "VNET_STATE"
# What tells where to look for things, passed on to the agent where it is set.
_PASSED_ON = (_STATE, "DOCKER_HOST", "CONTAINER_HOST", "VNET_ENGINES")
# With ProtectHome=yes a service sees nothing of these.
_HOMES = ("/home", "/root", "/run/user")
_UNIT = """\
[Unit]
Description=Keeps up the networks that vnet-tui made
After=network.target nftables.service firewalld.service docker.service podman.socket

[Service]
Type=exec
ExecStart={start}
{settings}
Restart=on-failure
RestartSec=2

# Changing links, addresses, routes and rules; entering containers' network namespaces; reaching these by the
# pid of a process that has other capabilities.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_SYS_PTRACE{raw}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome={home}
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables={tunables}
ProtectControlGroups=yes
PrivateDevices=yes
PrivateTmp={tmp}
# AF_INET: an ioctl of netdevice(7) needs such a socket; nothing is sent but metrics, if asked for.
RestrictAddressFamilies={families}
RestrictNamespaces=net
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=multi-user.target
"""
# The fast path sets a sysctl, keeps its compiled program and is asked by a socket, also by others than the
# agent; CAP_NET_RAW and AF_INET6 let it see changes of iptables-legacy. Kernels before 5.11 count its maps as
# locked memory.
_FAST = """\
RuntimeDirectory=vnet-tui
RuntimeDirectoryPreserve=yes
CacheDirectory=vnet-tui
CacheDirectoryMode=0700
LimitMEMLOCK=infinity"""


def render(metrics: str = "", accelerate: Sequence[str] = (), strict: bool = False) -> str:
    """The text of the unit, for this program, its interpreter and its state directory; `metrics` is where it
    serves them, "" for nowhere; `accelerate` what the fast path is kept up for, and whether it is
    `strict`."""
    words, more = _program()
    environment = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)} | more
    settings = [f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()]
    state, serving = os.environ.get(_STATE), ("--metrics", metrics) if metrics else ()
    settings += [f"ReadWritePaths={_quoted(state)}"] if state else ["StateDirectory=vnet-tui"]
    settings += [] if state else ["StateDirectoryMode=0700"]
    settings += [_FAST] if accelerate else []
    fast = ("--accelerate", *accelerate, *(["--strict"] if strict else [])) if accelerate else ()
    needed = [*words[:1], sys.executable, sys.prefix, str(_PACKAGES), *([state] if state else [])]
    return _UNIT.format(
        start=" ".join(_quoted(word.replace("$", "$$")) for word in (*words, "agent", *serving, *fast)),
        families="AF_UNIX AF_NETLINK AF_INET" + " AF_INET6" * ("[" in metrics or bool(accelerate)),
        raw=" CAP_NET_RAW" if accelerate else "",
        settings="\n".join(settings),
        home="read-only" if any(_is_below(path, _HOMES) for path in needed) else "yes",
        tunables="no" if accelerate else "yes",
        tmp="no" if any(_is_below(path, ("/tmp", "/var/tmp")) for path in needed) else "yes",
    )


def _program() -> tuple[tuple[str, ...], dict[str, str]]:
    """The command that runs this installation of the program, and what its environment must say."""
    beside = Path(sys.executable).with_name("vnet-tui")
    if beside.is_file() and os.access(beside, os.X_OK):
        return (str(beside),), {}
    return (sys.executable, "-P", "-m", "tui.cli"), {"PYTHONPATH": str(_PACKAGES)}


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    places = (Path(path), Path(path).resolve())
    return any(place.is_relative_to(folder) for place in places for folder in folders)


def _quoted(word: str) -> str:
    """One word of a unit file, nothing in it read as more than itself (systemd.syntax(7))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(one in " \t\"'\\;" for one in word) else escaped
