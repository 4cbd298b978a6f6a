"""The command line: what `vnet-tui` understands; exit codes are 0 done, 1 an error in words, 2 usage."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from core.tools import clean
from tui.change.arguments import COMMANDS, add_commands
from tui.command import CommandError, is_recording, load, load_whole, need_a_terminal
from tui.fastpath import arguments as fast_arguments

if TYPE_CHECKING:
    from core.model import Snapshot
    from tui.changer import Changer
    from tui.fastpath.session import FastForDashboard
    from tui.source import Source

TOPICS = (
    "namespaces", "links", "bridges", "veths", "containers", "networks", "nat", "conntrack", "routes",
)  # fmt: skip
# What must be read for each topic; the rest would only cost time.
PARTS = {
    "namespaces": ("links", "containers"),
    "links": ("links", "containers", "ovs"),
    "bridges": ("links", "containers", "ovs", "firewall"),
    "veths": ("links", "containers"),
    "containers": ("links", "containers", "firewall"),
    "networks": ("links", "containers", "firewall"),
    "nat": ("links", "containers", "firewall"),
    "conntrack": ("links", "containers", "conntrack"),
    "routes": ("links", "containers"),
}
EXAMPLES = """\
examples:
  vnet-tui                               open the dashboard (root sees all)
  vnet-tui show veths                    every veth pair with both its ends
  vnet-tui show links --ns web1          the links of a namespace or container
  vnet-tui show nat --json | jq '.nat[]' for scripts; schema: docs/json.md
  vnet-tui flows --by container          flows added up; also --follow, rate:>1M
  vnet-tui dump host.vnet                save all that can be seen to a file
  vnet-tui --from host.vnet              open that file, anywhere, without root
  vnet-tui record now.vnetrec            record this host; `replay` shows it
  vnet-tui bundle report.tar.gz          a readable file for a bug report
  vnet-tui demo                          the dashboard on a demo lab
  vnet-tui network create shop           a NAT network (--dry-run: only print)
  vnet-tui container create web --network shop
  vnet-tui publish web 8080:80           port 8080 of the host leads to web
  vnet-tui apply net.toml                make what a file says: docs/changing.md
  vnet-tui undo                          take back the last change
  vnet-tui accelerate shop               turn on the fast path for a network
  vnet-tui completion bash > /etc/bash_completion.d/vnet-tui
"""


class _Parser(argparse.ArgumentParser):
    """Asks whether a word that is nearly one of those that it knows was meant to be that one."""

    def error(self, message: str) -> NoReturn:
        from difflib import get_close_matches

        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found:
            known = re.split(r",\s*", found[2].replace("'", ""))
            near = get_close_matches(found[1], known, n=1, cutoff=0.7)
            message += f"; did you mean {near[0]}?" if near else ""
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; shell completion derives from it too."""
    parser: argparse.ArgumentParser = _Parser(
        prog="vnet-tui",
        description="See this host's bridges, veth pairs, network namespaces, containers, NAT and\n"
        "conntrack, live, and change them safely. Without a command, the dashboard opens.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    _add_looks(parser, False)
    parser.add_argument(
        "--read-only", action="store_true",
        help="allow no changes in the dashboard, and give up the rights to make them",
    )  # fmt: skip
    _add_from(parser, None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_show(commands.add_parser("show", help="print lists as text or JSON", allow_abbrev=False))
    dump = commands.add_parser("dump", help="write a whole snapshot into a file", allow_abbrev=False)
    dump.add_argument("file", metavar="FILE", help='where to write it ("-": standard output)')
    _add_from(dump, argparse.SUPPRESS)
    _add_keeping(commands)
    demo = commands.add_parser(
        "demo", help="open the dashboard on a demo lab, or on a recording of it", allow_abbrev=False,
        usage="vnet-tui demo [-h] [--ascii] [--write] [--no-traffic] [COMMAND ...]",
    )  # fmt: skip
    _add_looks(demo, argparse.SUPPRESS)
    demo.add_argument("--no-traffic", action="store_true", help="leave the lab's network quiet")
    demo.add_argument("run", nargs=argparse.REMAINDER, metavar="COMMAND", help="run this in the lab instead")
    _add_flows(commands.add_parser("flows", help="print who talks to whom and how fast", allow_abbrev=False))
    add_commands(commands)
    fast_arguments.add_commands(commands)
    shell = commands.add_parser("completion", help="print a shell's completion script", allow_abbrev=False)
    shell.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to complete for")
    return parser


def _add_keeping(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Recordings and bundles."""
    from tui.record import bytes_of, seconds_of

    record = commands.add_parser("record", help="record this host over time into a file", allow_abbrev=False)
    record.add_argument("file", metavar="FILE", help="where to write it; it must not be there yet")
    record.add_argument("--for", dest="seconds", type=seconds_of, metavar="TIME", help="how long (10m)")
    record.add_argument("--max-size", dest="size", type=bytes_of, metavar="SIZE", help="how large (64M)")
    replay = commands.add_parser("replay", help="open a recording, with a time line", allow_abbrev=False)
    replay.add_argument("file", metavar="FILE", help="what `vnet-tui record` or R in the dashboard wrote")
    bundle = commands.add_parser(
        "bundle", help="write this moment, whole and readable, into one file", allow_abbrev=False
    )
    bundle.add_argument("file", metavar="FILE", help="where to write it: a .tar.gz")
    _add_from(bundle, argparse.SUPPRESS)


def _add_looks(parser: argparse.ArgumentParser, default: bool | str) -> None:
    """How the dashboard opens; with the default argparse.SUPPRESS what stands before the command holds."""
    for name, text in (
        ("--ascii", "draw the dashboard with ASCII characters alone"),
        ("--write", "allow changes in the dashboard from the start"),
    ):
        parser.add_argument(name, action="store_true", default=default, help=text)


def _add_from(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--from", dest="source", metavar="FILE", default=default,
        help="look at a file that `vnet-tui dump` or `bundle` wrote, not at this host",
    )  # fmt: skip


def _add_show(show: argparse.ArgumentParser) -> None:
    show.add_argument("topic", nargs="?", default="all", choices=("all", *TOPICS), help="what to print (all)")
    show.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    show.add_argument("--ns", metavar="NAME", help="only this namespace: its name, container, unit or inode")
    _add_from(show, argparse.SUPPRESS)


def _add_flows(flows: argparse.ArgumentParser) -> None:
    flows.add_argument(
        "filter", nargs="*", metavar="FILTER", help="as in the dashboard: ct:web1 rate:>1M port:443"
    )
    flows.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    flows.add_argument("--follow", action="store_true", help="print again and again; as JSON a flow a line")
    flows.add_argument(
        "--per-hop", action="store_true", help="a connection's entry in each namespace by itself"
    )
    flows.add_argument(
        "--by", choices=("container", "network", "peer", "port", "process", "client"), default="",
        help="add flows up",
    )  # fmt: skip
    flows.add_argument(
        "--over", type=float, metavar="SECONDS", default=None,
        help="measure speeds over that long (1; with --json 0, unless --top, --by or rate: need speeds)",
    )  # fmt: skip
    flows.add_argument("--top", type=int, metavar="COUNT", default=None, help="only so many, the fastest")
    flows.add_argument(
        "--sockets", action="store_true", help="look for round trip times and processes as well"
    )
    _add_from(flows, argparse.SUPPRESS)


class _Version(argparse.Action):
    """Prints the installed version; looking it up takes time that other commands need not spend."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vnet-tui {version('vnet-tui')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, that of this process if none is given, and return its exit code."""
    if arguments is None:
        clean()
    options = make_parser().parse_args(arguments)
    try:
        from tui.confined import confine, refuse_changes

        refuse_changes(options)
        if arguments is None:  # the process is ours alone
            confine(options)
        code = _run(options)
        sys.stdout.flush()
        return code
    except CommandError as error:
        print(f"vnet-tui: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read us has enough; the interpreter must not flush into the closed pipe at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command in COMMANDS:
        from tui.change.main import run

        return run(options)
    if options.command in fast_arguments.COMMANDS:
        from tui.fastpath.command import run as run_fast

        return run_fast(options)
    match options.command:
        case "show":
            return _show(options)
        case "dump":
            return _dump(options)
        case "flows":
            from tui import flows

            if not options.source:
                return flows.run(options, None)
            return flows.run(options, *load_whole(Path(options.source)))
        case "demo":
            return _demo(options)
        case "record" | "replay" | "bundle":
            return _keep(options)
        case "completion":
            from tui.completion import script

            sys.stdout.write(script(make_parser(), options.shell))
            return 0
    return _dashboard(options)


def _keep(options: argparse.Namespace) -> int:
    from tui.record import run

    if options.command == "replay":
        need_a_terminal()
    return run(options)


def _show(options: argparse.Namespace) -> int:
    from tui.show import Output, UnknownNamespace, show

    topics = TOPICS if options.topic == "all" else (options.topic,)
    parts = {part for topic in topics for part in PARTS[topic]}
    try:
        show(_snapshot(options, parts), topics, Output.of(sys.stdout, options.json), options.ns)
    except UnknownNamespace as error:
        raise CommandError(str(error)) from None
    return 0


def _snapshot(options: argparse.Namespace, parts: set[str] | None = None) -> Snapshot:
    """From the file that was named, else from this host."""
    if options.source:
        return load(Path(options.source))
    from core.collect.snapshot import read_snapshot

    return read_snapshot(parts)


def _dump(options: argparse.Namespace) -> int:
    from core.serialize import pack
    from core.topology import Topology
    from tui.keepsake import LOOK_FIRST, save
    from tui.show import print_problems

    snapshot = _snapshot(options)
    content = pack(snapshot)
    if options.file == "-":
        sys.stdout.buffer.write(content)
    else:
        print(f"{save(Path(options.file), content)}: {LOOK_FIRST}", file=sys.stderr)
    print_problems(Topology(snapshot), TOPICS)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from tui import demo

    words = options.run[1:] if options.run[:1] == ["--"] else options.run
    if words in ([], ["vnet-tui"]):
        return _open_demo(options)
    if words[0] == "vnet-tui":
        flags = [f"--{name}" for name in ("ascii", "write") if getattr(options, name)]
        words = ["vnet-tui", *flags, *words[1:]]
    elif shutil.which(words[0]) is None:
        raise CommandError(f"there is no command {words[0]!r} to run in the demo lab")
    return demo.run_command(words, traffic=not options.no_traffic)


def _open_demo(options: argparse.Namespace) -> int:
    from tui import demo

    quiet = getattr(options, "no_traffic", False)
    return demo.open_dashboard(options.ascii, options.write, traffic=not quiet)


def _dashboard(options: argparse.Namespace) -> int:
    if options.write and options.read_only:
        raise CommandError("can't open the dashboard: --write and --read-only exclude each other")
    if options.source:
        return _file_dashboard(options)
    need_a_terminal()
    from tui.app import run
    from tui.fastpath.session import FastForDashboard

    fast = FastForDashboard()
    if options.read_only:
        return run(_live_source(fast), options.ascii)

    def open_demo() -> int:
        """Open the demo, and this host again when the person has left it."""
        return _open_demo(options) or _dashboard(options)

    return run(_live_source(fast), options.ascii, _changer, options.write, fast.accelerator, open_demo)


def _file_dashboard(options: argparse.Namespace) -> int:
    """The dashboard on a file; what is wrong with the file is said first."""
    if options.write:
        raise CommandError("--write is for this host: a file cannot be changed")
    source = _file_source(options.source)
    need_a_terminal()
    from tui.app import run

    return run(source, options.ascii)


def _changer() -> Changer:
    from tui.change.session import Session

    return Session()


def _file_source(path: str) -> Source:
    from tui.record import opened
    from tui.source import FileSource

    if is_recording(Path(path)):
        return opened(Path(path))
    snapshot, fast = load_whole(Path(path))
    return FileSource(snapshot, Path(path).name, fast)


def _live_source(fast: FastForDashboard) -> Source:
    from tui.source import LiveSource

    return LiveSource(fast.flows)


if __name__ == "__main__":
    sys.exit(main())
