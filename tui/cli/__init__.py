"""Run the commands of `vnet-tui`.

Exit codes: 0 done, 1 an error with a message, 2 wrong usage; `diff` has those of diff(1).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core.tools import clean_environment
from tui.cli.parser import CHANGE_COMMANDS, FAST_PATH_COMMANDS, make_parser
from tui.command import CommandError, output_folder

__all__ = ["main"]

# With these an engine's socket may belong to another user.
_ENGINES = ("DOCKER_HOST", "CONTAINER_HOST")
# What commands that aren't only reading do, if it isn't "makes changes".
_DOES = {"shell": "runs programs"}
# Errors of write(2) on a full disk, a full quota, and a device that fails.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Commands that change nothing on this host.
_READING = (
    "show", "dump", "record", "replay", "bundle", "flows", "drops", "export", "history", "fastpath",
    "completion", "capture", "diff",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: that of this process); returns the exit code."""
    if arguments is None:
        clean_environment()
    try:
        options = _parsed(arguments)
        refuse_changes(options)
        if arguments is None:  # this is the whole process
            confine(options)
        code = _run(options)
        sys.stdout.flush()
        return code
    except CommandError as error:
        print(f"vnet-tui: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _discard_output()  # the reader has closed the pipe
        return 0
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _discard_output()
        print(f"vnet-tui: can't write the output: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; raises OSError if the help can't be written."""
    try:
        return make_parser().parse_args(arguments)
    except SystemExit:
        sys.stdout.flush()
        raise


def _discard_output() -> None:
    """Let the interpreter flush at its end what can't be written, without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: argparse.Namespace) -> int:
    """Import the module of the command, and run it."""
    if options.command in CHANGE_COMMANDS:
        from tui.cli.change import run
    elif options.command in FAST_PATH_COMMANDS:
        from tui.cli.fastpath import run
    else:
        match options.command:
            case "show" | "dump":
                from tui.cli.show import run
            case "flows":
                from tui.cli.flows import run
            case "why":
                from tui.cli.why import run
            case "trace":
                from tui.cli.trace import run
            case "doctor":
                from tui.cli.doctor import run
            case "drops":
                from tui.cli.drops import run
            case "record" | "replay" | "bundle":
                from tui.cli.record import run
            case "capture":
                from tui.cli.capture import run
            case "diff":
                from tui.cli.diff import run
            case "storm":
                from tui.cli.storm import run
            case "shell":
                from tui.cli.shell import run
            case "completion":
                from tui.cli.completion import run
            case _:
                from tui.cli.dashboard import run
    return run(options)


def refuse_changes(options: argparse.Namespace) -> None:
    """Raise CommandError for a change of this host with an option that promises none."""
    for option, given in (("--read-only", options.read_only), ("--from", options.source)):
        if given and _changes(options):
            does = _DOES.get(options.command, "makes changes")
            raise CommandError(
                f"can't run {options.command} with {option}: it {does} on this host. "
                f"Try: the same without {option}"
            )


def _changes(options: argparse.Namespace) -> bool:
    if not options.command or options.command in _READING or getattr(options, "dry_run", False):
        return False
    if options.command in ("why", "doctor"):
        return bool(options.fix)
    if options.command == "trace":
        return options.b is not None  # of a flow nothing is sent
    if options.command == "storm" and options.action == "guard":
        return bool(options.state != "status")
    return bool((options.command, getattr(options, "action", "")) != ("network", "ls"))


def confine(options: argparse.Namespace) -> None:
    """Give up the rights that a reading command doesn't need.

    docs/security.md has the reasons.
    """
    from core import confine as rights

    reads_only = options.command in ("why", "doctor") and not _changes(options)
    is_static = reads_only and options.command == "why" and not options.probe
    if options.command in ("show", "flows", "drops", "diff") or is_static:
        for_engines = {rights.DAC_OVERRIDE} if any(map(os.environ.get, _ENGINES)) else set()
        if options.command == "drops":
            counting = {rights.SYSLOG, rights.PERFMON, rights.BPF}
            rights.drop_capabilities(rights.READING | counting | for_engines)
        elif options.source:
            rights.drop_capabilities((rights.DAC_READ_SEARCH,))
        else:
            if options.command == "show" and options.topic in ("overlay", "all"):
                rights.join_group("frrvty")  # of FRRouting's sockets
            rights.drop_capabilities(rights.READING | for_engines)
    elif options.command == "capture" or (options.command == "trace" and options.b is None):
        functions = (
            {rights.SYSLOG, rights.PERFMON, rights.BPF} if getattr(options, "functions", False) else set()
        )
        rights.drop_capabilities(rights.READING | functions | {rights.DAC_OVERRIDE})
    elif options.command == "replay" or (options.command is None and options.source):
        rights.drop_capabilities((rights.DAC_READ_SEARCH, rights.DAC_OVERRIDE))
        rights.forbid_writing(_outputs())
    elif options.command is None and options.read_only:
        rights.mount_read_only(_outputs())
        rights.drop_capabilities(rights.READING | {rights.DAC_OVERRIDE})


def _outputs() -> Path:
    """Return the folder of recordings and bundles; never the root folder."""
    found = output_folder()
    return found if found != Path("/") else Path.home()
