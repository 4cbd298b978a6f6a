"""Change bridges and ports of Open vSwitch with ovs-vsctl(8).

Each operation is one transaction of its database: executed as a whole, or not at all.
"""

from __future__ import annotations

import errno
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

from core.operations.base import LinkOperation, Operation
from core.operations.executor import Executor, run_holding_lock
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import TABLE, quoted

# Seconds to wait for ovs-vswitchd, less than for any tool (core.operations.executor).
_TIMEOUT = 10
_ALARM = -14  # how ovs-vsctl ends after its time-out
_NOT_RUNNING = "Open vSwitch isn't running. Try: systemctl start openvswitch-switch"
_NO_DATAPATH = (
    "Open vSwitch can't set it up; this kernel may have no openvswitch module. Try: modprobe openvswitch, or "
    "--datapath netdev, which forwards in user space"
)


class _NoAnswer(OSError):
    """Report that ovs-vswitchd didn't finish in time: the change may still happen."""

    uncertain = True


class _NotSetUp(OSError):
    """Report that the database was changed, but ovs-vswitchd can't do it."""


class _OvsOperation(Operation):
    """An operation that one run of ovs-vsctl executes; its database is a file."""

    __slots__ = ()
    survives_reboot: ClassVar[bool] = True

    def _words(self) -> tuple[str, ...]:
        """Return the arguments of ovs-vsctl."""
        raise NotImplementedError

    def command(self) -> str:
        return " ".join(("ovs-vsctl", *map(quoted, self._words())))

    def execute(self, executor: Executor) -> None:
        _require_daemon()
        _vsctl(*self._words())

    def _execute_or_remove(self, removal: OvsDeleteBridge | OvsDeletePort) -> None:
        """Execute it; if ovs-vswitchd can't set it up, remove it from the database."""
        _require_daemon()
        try:
            _vsctl(*self._words())
        except _NotSetUp:
            _vsctl(*removal._words())
            raise


@recorded()
@dataclass(frozen=True, slots=True)
class OvsAddBridge(_OvsOperation):
    """Add a bridge, its link down and without addresses.

    `tag` is the external id by which vnet-tui finds its networks ("" for none). `datapath` is "system" (the
    kernel's) or "netdev" (in user space). For `mac` "" it changes with the ports, for `mtu` 0 as well.
    """

    name: str
    tag: str = ""
    datapath: str = "system"
    mac: str = ""
    mtu: int = 0

    def _words(self) -> tuple[str, ...]:
        words = ["add-br", self.name]
        if self.datapath != "system":
            words += ["--", "set", "bridge", self.name, f"datapath_type={self.datapath}"]
        if self.mac:
            words += ["--", "set", "bridge", self.name, f'other-config:hwaddr="{self.mac}"']
        if self.mtu:
            words += ["--", "set", "interface", self.name, f"mtu_request={self.mtu}"]
        if self.tag:
            words += ["--", "br-set-external-id", self.name, TABLE, self.tag]
        return tuple(words)

    def inverse(self) -> tuple[OvsDeleteBridge, ...]:
        return (OvsDeleteBridge(self.name, again=self),)

    def describe(self) -> str:
        where = " in user space" if self.datapath == "netdev" else ""
        return f"create the Open vSwitch bridge {self.name}{where}"

    def affects(self) -> tuple[str, ...]:
        return (HOST.link(self.name),)

    def execute(self, executor: Executor) -> None:
        try:
            self._execute_or_remove(OvsDeleteBridge(self.name))
        except _NotSetUp as error:
            why = _NO_DATAPATH if self.datapath == "system" else str(error.strerror)
            raise OSError(errno.EOPNOTSUPP, why) from error

    def may_be_done(self, executor: Executor) -> bool:
        with suppress(OSError):
            return _vsctl("br-get-external-id", self.name, TABLE).strip() == self.tag
        return True


@recorded()
@dataclass(frozen=True, slots=True)
class OvsDeleteBridge(_OvsOperation):
    """Delete a bridge with its ports, flows and settings; `again` is its undo."""

    name: str
    again: OvsAddBridge | None = None

    def _words(self) -> tuple[str, ...]:
        return ("--if-exists", "del-br", self.name)

    def inverse(self) -> tuple[OvsAddBridge, ...]:
        return (self.again,) if self.again else ()

    def describe(self) -> str:
        return f"delete the Open vSwitch bridge {self.name}"

    def affects(self) -> tuple[str, ...]:
        return (HOST.link(self.name),)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.name, HOST


@recorded()
@dataclass(frozen=True, slots=True)
class OvsAddPort(_OvsOperation):
    """Make a link of the host a port of a bridge.

    `tag` is its VLAN (0 for none), `trunks` are the VLANs that it trunks.
    """

    bridge: str
    port: str
    tag: int = 0
    trunks: tuple[int, ...] = ()

    def _words(self) -> tuple[str, ...]:
        words = ["add-port", self.bridge, self.port]
        words += [f"tag={self.tag}"] if self.tag else []
        words += [f"trunks={','.join(map(str, self.trunks))}"] if self.trunks else []
        return tuple(words)

    def inverse(self) -> tuple[OvsDeletePort, ...]:
        return (OvsDeletePort(self.bridge, self.port, again=self),)

    def describe(self) -> str:
        vlan = f" in VLAN {self.tag}" if self.tag else ""
        return f"make {self.port} a port of {self.bridge}{vlan}"

    def affects(self) -> tuple[str, ...]:
        return HOST.link(self.port), HOST.link(self.bridge)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.port, HOST

    def execute(self, executor: Executor) -> None:
        self._execute_or_remove(OvsDeletePort(self.bridge, self.port))


@recorded()
@dataclass(frozen=True, slots=True)
class OvsDeletePort(_OvsOperation):
    """Detach a port from a bridge; `again` is its undo."""

    bridge: str
    port: str
    again: OvsAddPort | None = None

    def _words(self) -> tuple[str, ...]:
        return ("--if-exists", "del-port", self.bridge, self.port)

    def inverse(self) -> tuple[OvsAddPort, ...]:
        return (self.again,) if self.again else ()

    def describe(self) -> str:
        return f"detach {self.port} from {self.bridge}"

    def affects(self) -> tuple[str, ...]:
        return HOST.link(self.port), HOST.link(self.bridge)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.port, HOST


@recorded()
@dataclass(frozen=True, slots=True)
class OvsSetMtu(_OvsOperation, LinkOperation):
    """Set the MTU of a bridge's own link, which Open vSwitch would reset otherwise."""

    name: str
    mtu: int
    before: int
    place: NetnsTarget = HOST

    def _words(self) -> tuple[str, ...]:
        return ("set", "interface", self.name, f"mtu_request={self.mtu}")

    def inverse(self) -> tuple[OvsSetMtu, ...]:
        return (replace(self, mtu=self.before, before=self.mtu),)

    def describe(self) -> str:
        return f"set the mtu of the Open vSwitch bridge {self.name} to {self.mtu}"


def _require_daemon() -> None:
    """Raise OSError unless ovs-vswitchd runs.

    Without it ovs-vsctl changes the database, and then waits for ever.
    """
    if _run("ovs-appctl", f"--timeout={_TIMEOUT}", "version").returncode:
        raise OSError(errno.ECONNREFUSED, _NOT_RUNNING)


def _vsctl(*words: str) -> str:
    """Run ovs-vsctl and return its output. Raises OSError."""
    done = _run("ovs-vsctl", f"--timeout={_TIMEOUT}", *words)
    why = _reason(done.stderr)
    if done.returncode == _ALARM:
        why = f"Open vSwitch didn't finish within {_TIMEOUT} s. Try: systemctl status openvswitch-switch"
        raise _NoAnswer(errno.ETIMEDOUT, why)
    if "database connection failed" in done.stderr:
        raise OSError(errno.ECONNREFUSED, _NOT_RUNNING)
    if done.returncode:
        raise OSError(_errno(why), why or f"ovs-vsctl ended with {done.returncode}")
    if "Error detected while setting up" in done.stderr:
        raise _NotSetUp(errno.EIO, why)
    return done.stdout


def _errno(why: str) -> int:
    """Return the errno of a message: undoing what is undone already succeeds."""
    if re.match(r"no (bridge|port|interface|row) ", why):
        return errno.ENOENT
    return errno.EEXIST if "already exists" in why else errno.EIO


def _reason(errors: str) -> str:
    """Return the first message of ovs-vsctl."""
    lines = (line.partition("ovs-vsctl: ")[2] for line in errors.splitlines())
    return next(filter(None, lines), "").partition("  See ovs-vswitchd log")[0]


def _run(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return run_holding_lock([tool, *words])
    except OSError as error:
        if error.errno == errno.ENOPKG:
            why = "Open vSwitch isn't installed. Try: apt install openvswitch-switch"
            raise OSError(errno.ENOPKG, why) from error
        raise
