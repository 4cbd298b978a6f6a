"""Change vnet-tui's part of FRRouting's running configuration (vtysh(1))."""

from __future__ import annotations

import errno
import json
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from core.collect.frr import PACKAGE, VTYSH, read_config
from core.frr_config import GROUP, lines, parse_config
from core.model.overlay import BgpConfig, EvpnGroup
from core.operations.base import Operation
from core.operations.executor import Executor, run_holding_lock
from core.operations.forwarding import AddFdb, DeleteFdb
from core.operations.values import from_record, recorded, to_record
from core.state import boot_id, read_state, write_state, writers_lock
from core.text import quoted
from core.tools import ToolFailed, find_tool, run_tool

_SAVED = "frr.json"
recorded()(EvpnGroup)


@recorded()
@dataclass(frozen=True, slots=True)
class ConfigureFrr(Operation):
    """Replace the peer group `before` by `after`; None for no group.

    A BGP instance is created or deleted with it if the group has a router id (core.frr_config). The lines
    follow from the group that is there when it is executed, so a group that FRRouting forgot is no error.
    """

    after: EvpnGroup | None
    before: EvpnGroup | None

    def command(self) -> str:
        words = ("configure terminal", *lines(self.before, self.after))
        return " ".join(["vtysh", *(f"-c {quoted(word)}" for word in words)])

    def inverse(self) -> tuple[ConfigureFrr, ...]:
        return (replace(self, after=self.before, before=self.after),)

    def describe(self) -> str:
        if not self.after:
            return f"delete the peer group {GROUP} of FRRouting"
        peers = ", ".join(self.after.peers) or "no peers"
        return f"set FRRouting's peer group {GROUP} in AS {self.after.asn} to {peers}"

    def affects(self) -> tuple[str, ...]:
        return (f"FRRouting's peer group {GROUP}",)

    def execute(self, executor: Executor) -> None:
        self.type_in()
        save_group(self.after)

    def type_in(self) -> None:
        """Type what differs into the running configuration. Raises OSError."""
        found = _current()
        if self.after:
            _check(found, self.after)
        typed = lines(found.group, self.after)
        try:
            _type(typed)
        except OSError:
            with suppress(OSError):  # lines before the refused one were accepted
                _type(lines(_current().group, found.group))
            raise


def save_group(group: EvpnGroup | None) -> None:
    """Store the peer group, for the agent. Raises StateError."""
    write_state(_SAVED, {"boot": boot_id(), "group": to_record(group)}, durable=False)


def saved_group() -> EvpnGroup | None:
    """Return the peer group that was last configured since boot, None without one."""
    try:
        noted = read_state(_SAVED)
        group = from_record(noted["group"]) if noted["boot"] == boot_id() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return group if isinstance(group, EvpnGroup) else None


def restore_group() -> bool:
    """Configure the saved peer group again if FRRouting lost it.

    It does so when bgpd restarts, as the configuration isn't written to a file. Returns whether anything was
    done. Raises OSError, StateError.
    """
    group = saved_group()
    if group is None or _current().group is not None:
        return False
    with writers_lock(wait=True):
        group = saved_group()
        if group is None or _current().group is not None:
            return False
        ConfigureFrr(group, None).type_in()
    return True


# A MAC that FRRouting doesn't know after that time (in seconds) is announced when the container sends.
_KNOWN_WITHIN, _PAUSE = 3.0, 0.05


@recorded()
@dataclass(frozen=True, slots=True)
class AnnounceMac(Operation):
    """Add a MAC to a bridge's forwarding table, for FRRouting to announce.

    zebra reads links and forwarding entries on two threads, and drops the entry of a port that it doesn't
    know yet. As the kernel only reports an entry that changes, it is then deleted and added again.
    """

    entry: AddFdb
    vni: int

    def command(self) -> str:
        return self.entry.command()

    def inverse(self) -> tuple[WithdrawMac, ...]:
        return (WithdrawMac(self),)

    def describe(self) -> str:
        return f"announce {self.entry.mac} at {self.entry.link} in VNI {self.vni}"

    def affects(self) -> tuple[str, ...]:
        return self.entry.affects()

    def execute(self, executor: Executor) -> None:
        end = time.monotonic() + _KNOWN_WITHIN
        self.entry.execute(executor)
        while not self._is_known() and time.monotonic() < end:
            time.sleep(_PAUSE)
            DeleteFdb(self.entry).execute(executor)
            self.entry.execute(executor)

    def _is_known(self) -> bool:
        """Return whether zebra knows where the MAC is; True if zebra can't be asked."""
        if not find_tool(VTYSH[0]):
            return True
        show = f"show evpn mac vni {self.vni} mac {self.entry.mac} json"
        try:
            known = json.loads(run_tool(*VTYSH, "-c", show, package=PACKAGE))
            return bool(known[self.entry.mac]["type"] == "local")
        except ToolFailed:
            return True
        except (ValueError, KeyError, TypeError):
            return False  # {} for an unknown MAC


@recorded()
@dataclass(frozen=True, slots=True)
class WithdrawMac(Operation):
    """Delete an announced MAC from the forwarding table; `announcement` is its undo."""

    announcement: AnnounceMac

    def command(self) -> str:
        return self._deletion.command()

    def inverse(self) -> tuple[AnnounceMac, ...]:
        return (self.announcement,)

    def describe(self) -> str:
        entry = self.announcement.entry
        return f"no longer announce {entry.mac} at {entry.link} in VNI {self.announcement.vni}"

    def affects(self) -> tuple[str, ...]:
        return self._deletion.affects()

    def execute(self, executor: Executor) -> None:
        self._deletion.execute(executor)

    @property
    def _deletion(self) -> DeleteFdb:
        return DeleteFdb(self.announcement.entry)


def _check(found: BgpConfig, after: EvpnGroup) -> None:
    """Raise OSError if others have configured BGP since the plan was made."""
    if found.evpn:
        raise OSError(errno.EBUSY, f"FRRouting manages EVPN for others now ({found.evpn[0]})")
    if found.asn and found.asn != after.asn:
        raise OSError(errno.EBUSY, f"FRRouting is in AS {found.asn} now, not in {after.asn}")
    if found.asn and not found.group and after.router_id:
        raise OSError(errno.EEXIST, f"FRRouting has a BGP instance of AS {found.asn} now")
    if not found.asn and not after.router_id:
        raise OSError(errno.ENOENT, f"FRRouting's BGP instance of AS {after.asn} no longer exists")


def _current() -> BgpConfig:
    try:
        return parse_config(read_config())
    except ToolFailed as failure:
        raise OSError(errno.EIO, f"{failure.why}. Try: {failure.try_}") from failure


def _type(typed: tuple[str, ...]) -> None:
    """Type configuration lines. Raises OSError at the first that is refused."""
    if not typed:
        return
    words = [word for line in ("configure terminal", *typed) for word in ("-c", line)]
    done = run_holding_lock([*VTYSH, *words])
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip()).removeprefix("% ")
        raise OSError(errno.EIO, f"vtysh: {said or f'it ended with {done.returncode}'}")
