"""Read FRRouting's BGP sessions and EVPN tables with vtysh(1)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.frr_config import parse_config
from core.model import Problem
from core.model.overlay import ESTABLISHED, BgpPeer, EvpnMac, EvpnNeighbor, Frr, Vni
from core.tools import OutOfTime, ToolFailed, find_tool, is_engine_enabled, run_tool

# Without a file for its history, vtysh adds every command to the one of the user.
VTYSH = ("vtysh", "-H", "/dev/null")
PACKAGE = "frr"
_CANT_READ = "can't read FRRouting"
_RUNNING = "show running-config"
_VRFS, _PEERS = "show bgp vrfs json", "show bgp neighbors json"
_VNIS, _MACS = "show evpn vni detail json", "show evpn mac vni all json"
_NEIGHBORS = "show evpn arp-cache vni all json"
_SOCKET = Path("/run/frr/zebra.vty")
_NEEDED = ("zebra", "bgpd")
Table = Mapping[str, Any]


def read_frr() -> tuple[Frr, tuple[Problem, ...]]:
    """Return what FRRouting knows, and problems.

    FRRouting that isn't installed or doesn't run is no problem. It isn't read if VNET_ENGINES excludes it.
    """
    if not find_tool("vtysh") or not is_engine_enabled(PACKAGE):
        return Frr(), ()
    try:
        return _read(), ()
    except ToolFailed as failure:
        return Frr(installed=True), (Problem("frr", _CANT_READ, failure.why, failure.try_),)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"unexpected output of vtysh ({type(error).__name__}: {error})"
        return Frr(installed=True), (Problem("frr", _CANT_READ, why, "vtysh -c 'show evpn'"),)


def read_config() -> str:
    """Return the running configuration. Raises ToolFailed."""
    return run_tool(*VTYSH, "-c", _RUNNING, package=PACKAGE)


def _read() -> Frr:
    version, daemons = _daemons()
    if not {*_NEEDED} <= {*daemons}:
        return Frr(True, version, daemons)
    return parse(version, daemons, _outputs(_RUNNING, _VRFS, _PEERS, _VNIS, _MACS, _NEIGHBORS))


def _daemons() -> tuple[str, tuple[str, ...]]:
    """Return the version, and the daemons that answer; "" and () without any.

    Raises OutOfTime if one hangs.
    """
    try:
        found = _outputs("show version", "show daemons")
    except OutOfTime:
        raise
    except ToolFailed as failure:
        if os.geteuid() and _SOCKET.exists():
            why, remedy = "only root and the group frrvty may connect to zebra", "run it as root"
            raise ToolFailed(_CANT_READ, why, remedy) from failure
        return "", ()
    version = re.match(r"FRRouting (\S+)", found["show version"])
    if not version:
        raise ValueError(f"no version in {found['show version'][:40]!r}")
    return version[1], tuple(found["show daemons"].split())


def _outputs(*commands: str) -> dict[str, str]:
    """Run commands in one vtysh, and return the output of each. Raises ToolFailed.

    vtysh ends at the first one that fails. Before each, it prints a prompt and the command.
    """
    printed = run_tool(*VTYSH, "-E", *(word for each in commands for word in ("-c", each)), package=PACKAGE)
    names = "|".join(map(re.escape, commands))
    parts = re.split(rf"^\S*[#>] ({names})$\n?", printed, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if absent := [each for each in commands if each not in found]:
        raise ValueError(f"no output of {absent[0]}")
    return found


def parse(version: str, daemons: tuple[str, ...], outputs: Mapping[str, str]) -> Frr:
    """Parse what the commands printed.

    Raises ValueError, KeyError, TypeError or AttributeError.
    """
    tables = {name: json.loads(text) for name, text in outputs.items() if name.endswith(" json")}
    return Frr(
        installed=True,
        version=version,
        daemons=daemons,
        router_id=tables[_VRFS]["vrfs"].get("default", {}).get("routerId", ""),
        config=parse_config(outputs[_RUNNING]),
        peers=tuple(_peer(address, row) for address, row in tables[_PEERS].items()),
        vnis=tuple(sorted(map(_vni, tables[_VNIS] or ()), key=lambda vni: vni.vni)),
        macs=tuple(_macs(tables[_MACS])),
        neighbors=tuple(_neighbors(tables[_NEIGHBORS])),
    )


def _peer(address: str, row: Table) -> BgpPeer:
    evpn = row.get("addressFamilyInfo", {}).get("l2VpnEvpn", {})
    return BgpPeer(
        address=address,
        asn=row["remoteAs"],
        state=row["bgpState"],
        group=row.get("peerGroup", ""),
        hostname=row.get("hostname", ""),
        up_since=row.get("bgpTimerUpEstablishedEpoch", 0) if row["bgpState"] == ESTABLISHED else 0,
        prefixes=evpn.get("acceptedPrefixCounter", 0),
        error=row.get("lastNotificationReason") or row.get("lastResetDueTo", ""),
    )


def _vni(row: Table) -> Vni:
    remotes = [remote["ip"] for remote in row.get("remoteVteps", ()) if isinstance(remote, dict)]
    bridge = row.get("sviInterface", "")
    return Vni(row["vni"], row["vxlanInterface"], bridge, row["vtepIp"], tuple(sorted(remotes)))


def _macs(table: Table) -> Iterator[EvpnMac]:
    for vni, rows in table.items():
        for mac, row in rows.get("macs", {}).items():
            remote = row["type"] == "remote"
            yield EvpnMac(
                int(vni), mac, row.get("remoteVtep", "") if remote else "", row.get("intf", ""),
                row["remoteSequence" if remote else "localSequence"], bool(row.get("isDuplicate")),
            )  # fmt: skip


def _neighbors(table: Table) -> Iterator[EvpnNeighbor]:
    for vni, rows in table.items():
        for address, row in rows.items():
            if isinstance(row, dict):
                vtep = row.get("remoteVtep", "") if row["type"] == "remote" else ""
                yield EvpnNeighbor(int(vni), address, row["mac"], vtep, row["state"] == "active")
