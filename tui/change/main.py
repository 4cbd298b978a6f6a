"""Which command is done by what."""

from __future__ import annotations

import argparse

from core.plan import Plan, Refused
from core.topology import Topology
from tui.change import files, history
from tui.change.console import agreed, confirm, in_words, is_person, print_plan
from tui.change.files import list_networks
from tui.change.perform import (
    LIGHT,
    PUBLISHING,
    RULED,
    TRACKED,
    TUNED,
    WHOLE,
    Parts,
    change,
    look,
    perform,
    planned,
)
from tui.change.requests import request_of

_OTHERS = {
    "apply": files.apply,
    "export": files.write_export,
    "cleanup": files.cleanup,
    "undo": history.undo,
    "recover": history.recover,
    "history": history.history,
    "confirm": confirm,
}
# What these delete may have firewall rules of its own.
_DELETING = (("container", "rm"), ("link", "rm"))


def _parts(options: argparse.Namespace, action: str) -> Parts:
    """What its plan is made from."""
    if (options.command, action) in _DELETING:
        return WHOLE
    if getattr(options, "uplink", ""):
        return RULED
    if getattr(options, "no_track_dns", None):
        return TRACKED
    return {"publish": PUBLISHING, "tune": TUNED}.get(options.command, LIGHT)


def _remove_network(options: argparse.Namespace) -> int:
    """Ask a person before it where something goes as well: attachments, ports. Scripts are not asked."""

    def planner(topology: Topology) -> Plan | Refused:
        return planned((request_of(options, topology),), topology)

    asks = is_person() and not options.yes and not options.json
    return perform(options, planner, LIGHT, _agreed if asks else None)


def _agreed(plan: Plan) -> bool:
    print_plan(plan)
    return not plan.hits or agreed("Remove it, and all that?")


def run(options: argparse.Namespace) -> int:
    """Do what a command of tui.change.arguments asks for; returns the exit code. Raises CommandError."""
    if options.command in _OTHERS:
        with in_words():
            return _OTHERS[options.command](options)
    if options.command == "agent":
        # Loaded for it alone: it brings the watcher's machinery along.
        from tui.change import agent

        return agent.run(options)
    action = getattr(options, "action", "")
    if (options.command, action) == ("network", "ls"):
        return list_networks(look(WHOLE), options.json)
    if (options.command, action) == ("network", "rm"):
        return _remove_network(options)
    return change(options, lambda topology: request_of(options, topology), _parts(options, action))
