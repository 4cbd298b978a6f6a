"""Read Open vSwitch's database with ovs-vsctl(8)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.model import OvsBridge, OvsInterface, OvsPort, Problem
from core.tools import ToolFailed, find_tool, is_engine_enabled, run_tool

TIMEOUT = 5  # seconds
_CANT_READ = "can't read the Open vSwitch bridges"
_PACKAGE = "openvswitch-switch"
_TABLES = {
    "Bridge": "name,datapath_type,fail_mode,stp_enable,rstp_enable,ports,external_ids",
    "Port": "_uuid,name,tag,trunks,vlan_mode,bond_mode,interfaces",
    "Interface": "_uuid,name,type,ifindex,ofport,mac_in_use,admin_state,link_state,options,error",
}
Row = Mapping[str, Any]


def read_ovs(db: str | None = None) -> tuple[tuple[OvsBridge, ...], tuple[Problem, ...]]:
    """Return all Open vSwitch bridges sorted by name, and problems.

    `db` is the database's address as for `ovs-vsctl --db` (None: its default, which depends on OVS_RUNDIR).
    Both results are empty without ovs-vsctl, and if VNET_ENGINES excludes Open vSwitch.
    """
    if not find_tool("ovs-vsctl") or (db is None and not is_engine_enabled("ovs")):
        return (), ()
    command = ["ovs-vsctl", f"--timeout={TIMEOUT}", "--format=json", *([f"--db={db}"] if db else [])]
    for table, columns in _TABLES.items():
        command += ["--", f"--columns={columns}", "list", table]
    try:
        return bridges(run_tool(*command, package=_PACKAGE)), ()
    except ToolFailed as failure:
        return (), (Problem("ovs", _CANT_READ, failure.why, _remedy(failure)),)
    except (ValueError, KeyError, TypeError) as error:
        why = f"unexpected output of ovs-vsctl ({type(error).__name__}: {error})"
        return (), (Problem("ovs", _CANT_READ, why, "ovs-vsctl show"),)


def _remedy(failure: ToolFailed) -> str:
    if "connection failed" in failure.why:
        return "systemctl start openvswitch-switch, or remove the package if you don't need it"
    return failure.try_


def bridges(output: str) -> tuple[OvsBridge, ...]:
    """Parse the output of ovs-vsctl: a JSON table per line, in the order of `_TABLES`.

    Raises ValueError, KeyError or TypeError.
    """
    bridge_rows, port_rows, interface_rows = (_rows(json.loads(line)) for line in output.splitlines())
    interfaces = {row["_uuid"]: _interface(row) for row in interface_rows}
    ports = {row["_uuid"]: _port(row, interfaces) for row in port_rows}
    return tuple(sorted((_bridge(row, ports) for row in bridge_rows), key=lambda bridge: bridge.name))


def _rows(table: Row) -> list[Row]:
    return [dict(zip(table["headings"], map(_value, row), strict=True)) for row in table["data"]]


def _value(value: Any) -> Any:
    """Convert an OVSDB value (RFC 7047, 5.1); a set is a list, an empty one None."""
    match value:
        case ["uuid", str(uuid)]:
            return uuid
        case ["set", []]:
            return None
        case ["set", list(members)]:
            return [_value(member) for member in members]
        case ["map", list(pairs)]:
            return {_value(key): _value(content) for key, content in pairs}
    return value


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _bridge(row: Row, ports: Mapping[str, OvsPort]) -> OvsBridge:
    found = [ports[uuid] for uuid in _as_list(row["ports"]) if uuid in ports]
    return OvsBridge(
        name=row["name"],
        datapath=row["datapath_type"] or "system",
        fail_mode=row["fail_mode"] or "",
        stp=bool(row["stp_enable"]),
        rstp=bool(row["rstp_enable"]),
        ports=tuple(sorted(found, key=lambda port: port.name)),
        external_ids=row["external_ids"],
    )


def _port(row: Row, interfaces: Mapping[str, OvsInterface]) -> OvsPort:
    found = [interfaces[uuid] for uuid in _as_list(row["interfaces"]) if uuid in interfaces]
    return OvsPort(
        name=row["name"],
        tag=row["tag"],
        trunks=tuple(sorted(_as_list(row["trunks"]))),
        vlan_mode=row["vlan_mode"] or "",
        bond_mode=row["bond_mode"] or "",
        interfaces=tuple(sorted(found, key=lambda interface: interface.name)),
    )


def _interface(row: Row) -> OvsInterface:
    ofport = row["ofport"]
    return OvsInterface(
        name=row["name"],
        kind=row["type"] or "system",
        ifindex=row["ifindex"] or None,
        ofport=ofport if ofport is not None and ofport >= 0 else None,
        mac=row["mac_in_use"] or "",
        admin_up=row["admin_state"] == "up",
        carrier=row["link_state"] == "up",
        options=row["options"],
        error=row["error"] or "",
    )
