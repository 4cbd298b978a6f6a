"""Start Open vSwitch on a machine or a host.

The datapath is in user space, or with VNET_OVS_DATAPATH=system the kernel's, on kernels that have it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.host import ThrowawayHost
from tests.support.machine import Machine, machine_state
from tests.support.waiting import PATIENCE, wait_until

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DATAPATH = os.environ.get("VNET_OVS_DATAPATH", "netdev")
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
    """Start ovs-vswitchd."""
    datapaths = "--disable-system" if DATAPATH == "netdev" else ""
    machine.run(f"ovs-vswitchd unix:{_RUN}/db.sock {datapaths} {_daemon('ovs-vswitchd')}")
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


@contextmanager
def switch_of(host: ThrowawayHost, folder: Path) -> Iterator[None]:
    """Run Open vSwitch on a throw-away host; OVS_RUNDIR must be the folder."""
    database, address = folder / "conf.db", f"unix:{folder}/db.sock"
    subprocess.run(["ovsdb-tool", "create", database, SCHEMA], check=True, capture_output=True)
    inside = ["nsenter", f"--net=/run/netns/{host.name}"]
    server = _start("ovsdb-server", database, f"--remote=p{address}", f"--pidfile={folder}/server.pid")
    wait_until((folder / "db.sock").exists)
    pidfile = f"--pidfile={folder}/ovs-vswitchd.pid"
    switch = _start(*inside, "ovs-vswitchd", address, "--disable-system", pidfile)
    wait_until(
        lambda: not subprocess.run(["ovs-appctl", "version"], check=False, capture_output=True).returncode
    )
    try:
        yield
    finally:
        for daemon in (switch, server):
            daemon.terminate()
            daemon.wait(timeout=PATIENCE)


def _start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground."""
    return subprocess.Popen(
        [*arguments, "--log-file=/dev/null"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
