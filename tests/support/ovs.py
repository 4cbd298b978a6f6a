"""Start Open vSwitch on a small machine, with the datapath in user space."""

from __future__ import annotations

import json
from typing import Any

from tests.support.machine import Machine, machine_state
from tests.support.waiting import wait_until

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_RUN = "/run/openvswitch"
_TABLES = {
    "bridge": "name,datapath_type,external_ids,other_config,fail_mode",
    "port": "name,tag,trunks,external_ids",
    "interface": "name,type,mtu_request,options,error",
}


def start_database(machine: Machine) -> None:
    """Start ovsdb-server, with an empty database if there is none."""
    machine.run(f"mkdir -p {_RUN}")
    if not machine.run(f"ls {_RUN}/conf.db", check=False):
        machine.run(f"ovsdb-tool create {_RUN}/conf.db {SCHEMA}")
    machine.run(f"ovsdb-server {_RUN}/conf.db --remote=punix:{_RUN}/db.sock {_daemon('ovsdb-server')}")


def start_switch(machine: Machine) -> None:
    """Start ovs-vswitchd, which has no kernel datapath."""
    machine.run(f"ovs-vswitchd unix:{_RUN}/db.sock --disable-system {_daemon('ovs-vswitchd')}")
    wait_until(lambda: machine.run("ovs-appctl version", check=False))


def _daemon(name: str) -> str:
    return f"--pidfile={_RUN}/{name}.pid --log-file=/dev/null --detach"


def stop(machine: Machine, name: str) -> None:
    """Stop one of the two daemons."""
    machine.run(f"pkill -x {name}")
    wait_until(lambda: not machine.run(f"pgrep -x {name}", check=False))


def vsctl(machine: Machine, arguments: str) -> str:
    """Run ovs-vsctl on the machine."""
    return machine.run(f"ovs-vsctl --timeout=60 {arguments}")


def ovs_state(machine: Machine) -> dict[str, Any]:
    """Return what vnet-tui's commands may change, with the database of Open vSwitch."""
    found = machine_state(machine)
    for table, columns in _TABLES.items():
        printed = json.loads(vsctl(machine, f"--format=json --columns={columns} list {table}"))
        found[f"ovs {table}"] = sorted(printed["data"], key=repr)
    return found
