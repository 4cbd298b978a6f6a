"""What a process that only reads gives up, by what was asked for (docs/security.md has the reasons)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from core import confine as rights
from tui.command import CommandError

# Where a rootless engine's socket belongs to another user.
_ENGINES = ("DOCKER_HOST", "CONTAINER_HOST")


# Commands that change nothing on this host.
_READING = (
    "show", "dump", "record", "replay", "bundle", "flows", "export", "history", "fastpath", "completion",
)  # fmt: skip


def refuse_changes(options: argparse.Namespace) -> None:
    """Raise CommandError for a change of this host with an option that promises none."""
    for option, given in (("--read-only", options.read_only), ("--from", options.source)):
        if given and _changes(options):
            raise CommandError(
                f"can't run {options.command} with {option}: it makes changes on this host. "
                f"Try: the same without {option}"
            )


def _changes(options: argparse.Namespace) -> bool:
    if not options.command or options.command in _READING or getattr(options, "dry_run", False):
        return False
    return bool((options.command, getattr(options, "action", "")) != ("network", "ls"))


def confine(options: argparse.Namespace) -> None:
    """Keep only what this command line needs, where it only reads."""
    if options.command in ("show", "flows"):
        if options.source:
            rights.drop_capabilities((rights.DAC_READ_SEARCH,))
        else:
            rights.drop_capabilities(rights.READING | _for_engines())
    elif options.command == "replay" or (options.command is None and options.source):
        rights.drop_capabilities((rights.DAC_READ_SEARCH, rights.DAC_OVERRIDE))
        rights.forbid_writing(_outputs())
    elif options.command is None and options.read_only:
        rights.mount_read_only(_outputs())
        rights.drop_capabilities(rights.READING | {rights.DAC_OVERRIDE})


def _for_engines() -> set[int]:
    return {rights.DAC_OVERRIDE} if any(os.environ.get(name) for name in _ENGINES) else set()


def _outputs() -> Path:
    """The folder of recordings and bundles; never all folders at once."""
    from tui.keepsake import output_folder

    found = output_folder()
    return found if found != Path("/") else Path.home()
