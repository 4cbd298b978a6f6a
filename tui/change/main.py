"""Which command is done by what."""

from __future__ import annotations

import argparse

from tui.change import earlier, files, keep, networks
from tui.change.perform import LIGHT, PUBLISHING, RULED, TUNED, WHOLE, Parts, change, look
from tui.change.requests import request_of
from tui.change.rights import in_words

_OTHERS = {
    "apply": files.apply,
    "export": files.write_export,
    "cleanup": files.cleanup,
    "undo": earlier.undo,
    "recover": earlier.recover,
    "history": earlier.history,
    "confirm": keep.confirm,
}
# What these delete may have firewall rules of its own.
_DELETING = (("container", "rm"), ("link", "rm"))


def _parts(options: argparse.Namespace, action: str) -> Parts:
    """What its plan is made from."""
    if (options.command, action) in _DELETING:
        return WHOLE
    if getattr(options, "uplink", ""):
        return RULED
    return {"publish": PUBLISHING, "tune": TUNED}.get(options.command, LIGHT)


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
        return networks.list_networks(look(WHOLE), options.json)
    return change(options, lambda topology: request_of(options, topology), _parts(options, action))
