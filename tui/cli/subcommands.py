"""Add commands to the command line's parser."""

from __future__ import annotations

import argparse

type Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command, whose options can't be abbreviated."""
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False)


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """Add a command that has actions, and return these."""
    group = add_command(commands, name, text)
    return group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)


def add_yes(command: argparse.ArgumentParser) -> None:
    """Add the option that answers the question of a command."""
    command.add_argument("--yes", "-y", action="store_true", help="don't ask for confirmation")
