"""Generate shell completion scripts from the parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from core.lab.faults import DEMO, FAULTS, NONE
from tui.cli.parser import make_parser

# Kinds of values by metavar, for completion in each shell.
_FILES, _NAMESPACES, _CONTAINERS, _LAB_FAULTS, _ITEMS = "FILE", "NAME", "CONTAINER", "FAULT", "WHAT"
_FAULT_NAMES = " ".join((*FAULTS, NONE, DEMO))
_MOMENTS = ("A", "B")  # of `diff`: files, or now


@dataclass
class _Command:
    """Words and options (name, help, value) that can follow a command."""

    name: str
    help: str
    options: list[tuple[str, str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    files: bool = False
    containers: bool = False


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script for "bash", "zsh" or "fish"."""
    top, commands = _read(parser)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](top, commands)


def _read(parser: argparse.ArgumentParser) -> tuple[_Command, list[_Command]]:
    top, commands = _command(parser, "", ""), []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = [_command(each, name, helps[name]) for name, each in action.choices.items()]
    return top, commands


def _command(parser: argparse.ArgumentParser, name: str, help_: str) -> _Command:
    command = _Command(name, help_)
    for action in parser._actions:
        _add_argument(action, command)
        if name and isinstance(action, argparse._SubParsersAction):
            command.words += action.choices
            for each in {id(each): each for each in action.choices.values()}.values():
                for inner in each._actions:
                    _add_argument(inner, command)
    return command


def _add_argument(action: argparse.Action, command: _Command) -> None:
    """Add one argument; an option that several actions have is added once."""
    known = {option for option, _, _ in command.options}
    for option in action.option_strings:
        value = "" if action.nargs == 0 else str(action.metavar)
        if option not in known:
            command.options.append((option, action.help or "", value))
    if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
        command.words += [str(choice) for choice in action.choices or ()]
        command.files |= action.metavar in (_FILES, *_MOMENTS)
        command.containers |= action.metavar in (_CONTAINERS, _ITEMS)


def _bash(top: _Command, commands: list[_Command]) -> str:
    cases = "\n".join(_bash_case(command) for command in commands)
    names = " ".join(command.name for command in commands)
    options = " ".join(option for option, _, _ in top.options)
    return f"""\
# bash completion for vnet-tui
_vnet_tui() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command="" each files="" words
  for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $each in {"|".join(command.name for command in commands)}) command=$each; break ;; esac
  done
  COMPREPLY=()
  case $before in
    --from) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    --ns) mapfile -t COMPREPLY < <(compgen -W "host $(ls /run/netns 2>/dev/null)" -- "$word"); return ;;
    --fault) mapfile -t COMPREPLY < <(compgen -W "{_FAULT_NAMES}" -- "$word"); return ;;
  esac
  case $command in
{cases}
    *) words="{names} {options}" ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
  if [[ -n $files ]]; then
    compopt -o filenames
    mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$word")
  fi
}}
complete -F _vnet_tui vnet-tui
"""


def _bash_case(command: _Command) -> str:
    words = " ".join([*command.words, *(option for option, _, _ in command.options)])
    words += " $(ls /run/netns 2>/dev/null)" if command.containers else ""
    return f'    {command.name}) words="{words}"{" files=1" if command.files else ""} ;;'


def _zsh(top: _Command, commands: list[_Command]) -> str:
    described = "\n".join(f"    {_quoted(f'{each.name}:{each.help}')}" for each in commands)
    cases = "\n".join(_zsh_case(command) for command in commands)
    options = " \\\n    ".join(_zsh_options(top))
    return f"""\
#compdef vnet-tui
_vnet_tui() {{
  local context state line
  local -a commands
  commands=(
{described}
  )
  _arguments -C \\
    {options} \\
    '1:command:->command' '*::argument:->argument'
  case $state in
    command) _describe command commands ;;
    argument)
      case $words[1] in
{cases}
      esac ;;
  esac
}}
if [[ $funcstack[1] == _vnet_tui ]]; then _vnet_tui "$@"; else compdef _vnet_tui vnet-tui; fi
"""


def _zsh_case(command: _Command) -> str:
    words = [*_zsh_options(command)]
    if command.containers:
        words.append(f"'*:container:({' '.join(command.words)} ${{(f)\"$(ls /run/netns 2>/dev/null)\"}})'")
    elif command.words:
        words.append(f"'1:what:({' '.join(command.words)})'")
    if command.files:
        words.append("'1:file:_files'")
    return f"        {command.name}) _arguments {' '.join(words)} ;;"


def _zsh_options(command: _Command) -> Iterator[str]:
    values = {
        "": "",
        _FILES: ":file:_files",
        _NAMESPACES: ':namespace:(host ${(f)"$(ls /run/netns 2>/dev/null)"})',
        _LAB_FAULTS: f":fault:({_FAULT_NAMES})",
    }
    for option, help_, value in command.options:
        text = help_.replace("[", "(").replace("]", ")").replace(":", " -")
        yield _quoted(f"{option}[{text}]{values.get(value, ':value:')}")


def _fish(top: _Command, commands: list[_Command]) -> str:
    lines = ["# fish completion for vnet-tui", "complete -c vnet-tui -f"]
    lines += [f"complete -c vnet-tui -n __fish_use_subcommand{each}" for each in _fish_options(top)]
    for command in commands:
        lines.append(
            f"complete -c vnet-tui -n __fish_use_subcommand -a {command.name} -d {_quoted(command.help)}"
        )
        seen = f"complete -c vnet-tui -n '__fish_seen_subcommand_from {command.name}'"
        lines += [f"{seen}{each}" for each in _fish_options(command)]
        lines += [f"{seen} -a {_quoted(' '.join(command.words))}"] if command.words else []
        lines += [f"{seen} -a '(ls /run/netns 2>/dev/null)'"] if command.containers else []
        lines += [f"{seen} -F"] if command.files else []
    return "\n".join(lines) + "\n"


def _fish_options(command: _Command) -> Iterator[str]:
    values = {
        "": "",
        _FILES: " -r -F",
        _NAMESPACES: " -x -a 'host (ls /run/netns 2>/dev/null)'",
        _LAB_FAULTS: f" -x -a '{_FAULT_NAMES}'",
    }
    for option, help_, value in command.options:
        kind, name = ("-l", option[2:]) if option.startswith("--") else ("-s", option[1:])
        yield f" {kind} {name} -d {_quoted(help_)}{values.get(value, ' -x')}"


def _quoted(text: str) -> str:
    """Put text in single quotes for zsh and fish.

    A quote inside is written as '\\''.
    """
    return "'" + text.replace("'", "'\\''") + "'"


def run(options: argparse.Namespace) -> int:
    """Print the script; returns the exit code."""
    sys.stdout.write(script(make_parser(), options.shell))
    return 0
