"""Read Open vSwitch: its database with ovs-vsctl(8), flows with ovs-ofctl(8)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.model import OvsBridge, OvsController, OvsFlow, OvsInterface, OvsPort, Problem
from core.tools import ToolFailed, find_tool, is_engine_enabled, run_tool

TIMEOUT = 5  # seconds
_CANT_READ = "can't read the Open vSwitch bridges"
_PACKAGE = "openvswitch-switch"
_TABLES = {
    "Bridge": "name,datapath_type,fail_mode,stp_enable,rstp_enable,ports,controller,protocols,external_ids",
    "Port": "_uuid,name,tag,trunks,vlan_mode,bond_mode,lacp,bond_active_slave,interfaces,external_ids",
    "Interface": "_uuid,name,type,ifindex,ofport,mac_in_use,admin_state,link_state,options,error",
    "Controller": "_uuid,target,is_connected,role",
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
    tables = (_rows(json.loads(line)) for line in output.splitlines())
    bridge_rows, port_rows, interface_rows, controller_rows = tables
    interfaces = {row["_uuid"]: _interface(row) for row in interface_rows}
    ports = {row["_uuid"]: _port(row, interfaces) for row in port_rows}
    controllers = {row["_uuid"]: _controller(row) for row in controller_rows}
    found = (_bridge(row, ports, controllers) for row in bridge_rows)
    return tuple(sorted(found, key=lambda bridge: bridge.name))


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


def _bridge(row: Row, ports: Mapping[str, OvsPort], controllers: Mapping[str, OvsController]) -> OvsBridge:
    found = [ports[uuid] for uuid in _as_list(row["ports"]) if uuid in ports]
    own = [controllers[uuid] for uuid in _as_list(row["controller"]) if uuid in controllers]
    return OvsBridge(
        name=row["name"],
        datapath=row["datapath_type"] or "system",
        fail_mode=row["fail_mode"] or "",
        stp=bool(row["stp_enable"]),
        rstp=bool(row["rstp_enable"]),
        ports=tuple(sorted(found, key=lambda port: port.name)),
        controllers=tuple(sorted(own, key=lambda controller: controller.target)),
        protocols=tuple(sorted(_as_list(row["protocols"]))),
        external_ids=row["external_ids"],
    )


def _controller(row: Row) -> OvsController:
    return OvsController(row["target"], bool(row["is_connected"]), row["role"] or "")


def _port(row: Row, interfaces: Mapping[str, OvsInterface]) -> OvsPort:
    found = [interfaces[uuid] for uuid in _as_list(row["interfaces"]) if uuid in interfaces]
    active = row["bond_active_slave"] if len(found) > 1 else None
    return OvsPort(
        name=row["name"],
        tag=row["tag"],
        trunks=tuple(sorted(_as_list(row["trunks"]))),
        vlan_mode=row["vlan_mode"] or "",
        bond_mode=row["bond_mode"] or "",
        lacp=row["lacp"] or "",
        bond_active=next((one.name for one in found if active and one.mac == active), ""),
        interfaces=tuple(sorted(found, key=lambda interface: interface.name)),
        external_ids=row["external_ids"],
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


# ---- Flows


def with_normal(found: tuple[OvsBridge, ...]) -> tuple[OvsBridge, ...]:
    """Find out of each bridge whether it switches as usual."""
    is_open = bool(found) and not _has_protected_ports()
    return tuple(replace(bridge, normal=is_open and _is_normal(bridge)) for bridge in found)


def _is_normal(bridge: OvsBridge) -> bool:
    if bridge.stp or bridge.rstp or any(port.vlan_mode for port in bridge.ports):
        return False
    try:
        flows = read_flows(bridge)
    except ToolFailed:
        return False
    return [(flow.table, flow.match, flow.actions) for flow in flows] == [(0, "", "NORMAL")]


def _has_protected_ports() -> bool:
    """Return whether protected ports, which don't reach each other, may exist."""
    command = (
        "ovs-vsctl",
        f"--timeout={TIMEOUT}",
        "--bare",
        "--columns=name",
        "find",
        "Port",
        "protected=true",
    )
    try:
        return bool(run_tool(*command, package=_PACKAGE).strip())
    except ToolFailed:
        return True


def read_flows(bridge: OvsBridge) -> tuple[OvsFlow, ...]:
    """Return the flows of a bridge by table and priority. Raises ToolFailed.

    ovs-ofctl must speak a version of OpenFlow that the bridge allows.
    """
    versions = ["-O", ",".join(bridge.protocols)] if bridge.protocols else []
    command = ("ovs-ofctl", f"--timeout={TIMEOUT}", "--names", *versions, "dump-flows", "--", bridge.name)
    return parse_flows(run_tool(*command, package=_PACKAGE))


def parse_flows(output: str) -> tuple[OvsFlow, ...]:
    """Parse the output of `ovs-ofctl dump-flows`; lines of another form are left out."""
    found = [flow for line in output.splitlines() if (flow := _flow(line))]
    return tuple(sorted(found, key=lambda flow: (flow.table, -flow.priority)))


def _flow(line: str) -> OvsFlow | None:
    head, separator, actions = line.partition(" actions=")
    *statistics, last = head.strip().removesuffix(",").split(", ")
    values = dict(each.partition("=")[::2] for each in statistics)
    # The last part is the priority, unless it is the default, and the match; without both there is none.
    if last.startswith("n_bytes="):
        last, values = "", values | {"n_bytes": last.removeprefix("n_bytes=")}
    first, _, rest = last.partition(",")
    is_default = not first.startswith("priority=")
    priority = _DEFAULT_PRIORITY if is_default else first.removeprefix("priority=")
    try:
        if not separator:
            return None
        return OvsFlow(
            int(values.get("table", "0")), int(priority), last if is_default else rest, actions,
            int(values["n_packets"]), int(values["n_bytes"]), float(values["duration"].removesuffix("s")),
            values.get("cookie", ""),
        )  # fmt: skip
    except (KeyError, ValueError):
        return None


_DEFAULT_PRIORITY = 32768  # OFP_DEFAULT_PRIORITY of OpenFlow
