"""`vnet-tui apply` and `vnet-tui export`: what shall be, as a file; and `vnet-tui cleanup`."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from core.files import PUBLIC, CannotWrite, write_whole
from core.model import link_ref
from core.ops import SetRules, Unwant
from core.plan import Plan, Refused, ours, rules
from core.plan.desired_state import BadFile, Desired, difference, export, parse
from core.plan.requests import Delete, Request, Unpublish
from core.plan.untracked import track_again
from core.text import safe
from core.topology import Topology
from tui.change import report
from tui.change.ask import agreed, is_person
from tui.change.perform import WHOLE, kept, look, perform, planned
from tui.errors import CommandError

_MOST_TEXT = 1 << 24


def apply(options: argparse.Namespace) -> int:
    """Make what a file says; nothing where all is so."""
    desired = _read(options.file)

    def planner(topology: Topology) -> Plan | Refused:
        requests = difference(desired, topology, options.prune)
        return planned(requests, topology, f"apply {options.file}")

    return perform(options, planner, WHOLE, None if options.yes else _ask)


def cleanup(options: argparse.Namespace) -> int:
    """Remove all that carries our tag."""

    def planner(topology: Topology) -> Plan | Refused:
        ours_all = difference(Desired(), topology, prune=True)
        # With an attachment its ports go: they go before.
        first = [one for one in ours_all if isinstance(one, Unpublish)]
        rest = [one for one in ours_all if not isinstance(one, Unpublish)]
        requests = (*first, *_strays(topology), *rest)
        plan = _without_kept(_without_table(planned(requests, topology, "clean up"), topology))
        return (
            plan if isinstance(plan, Refused) else replace(plan, steps=(*track_again(topology), *plan.steps))
        )

    return perform(options, planner, WHOLE, None if options.yes else _ask)


def write_export(options: argparse.Namespace) -> int:
    """Write the file for what exists."""
    text = export(look(WHOLE))
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        line = text[: error.end].count("\n")
        raise CommandError(
            f"can't export a name that isn't UTF-8, which TOML is: {safe(text.splitlines()[line])}. "
            "Try: rename it"
        ) from None
    if options.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        write_whole(Path(options.file), content, PUBLIC)
    except CannotWrite as error:
        raise CommandError(str(error)) from None
    return 0


def _read(name: str) -> Desired:
    try:
        with nullcontext(sys.stdin) if name == "-" else Path(name).open() as file:
            text = file.read(_MOST_TEXT + 1)
        if len(text) > _MOST_TEXT:
            raise CommandError(f"can't read {safe(name)}: it is too large. Try: a file that `export` wrote")
        return parse(text)
    except OSError as error:
        raise CommandError(f"cannot read {safe(name)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{safe(name)} is no text in UTF-8") from None
    except BadFile as error:
        raise CommandError(f"{safe(name)}: {'; '.join(map(safe, error.reasons))}") from None


def _ask(plan: Plan) -> bool:
    report.print_plan(plan)
    sys.stdout.flush()
    if not is_person():
        raise CommandError("nothing was changed: there is nobody to ask; say --yes to have it done")
    return agreed(f"Do these {len(plan.steps)} steps?")


def _strays(topology: Topology) -> list[Request]:
    """Attachments whose network is gone."""
    mine = ours(topology.snapshot, topology.host)
    ports = {member.port for member in mine.members if member.network not in mine.networks}
    net = topology.snapshot.nets[topology.host]
    return [Delete(link_ref(link.key)) for link in net.links.values() if link.name in ports]


def _without_kept(plan: Plan | Refused) -> Plan | Refused:
    """What the agent would attach to networks that are gone, after a restart of the machine, goes too."""
    if isinstance(plan, Refused):
        return plan
    gone = {step.want for step in plan.steps if isinstance(step, Unwant)}
    left = (Unwant(want) for want in kept() if want not in gone)
    return replace(plan, steps=(*plan.steps, *left))


def _without_table(plan: Plan | Refused, topology: Topology) -> Plan | Refused:
    """A table of ours that is there without a network goes too."""
    mine = ours(topology.snapshot, topology.host)
    if isinstance(plan, Refused) or not mine.table or any(isinstance(step, SetRules) for step in plan.steps):
        return plan
    return Plan(
        plan.title, (*plan.steps, SetRules(rules.EMPTY, rules.EMPTY)), plan.warnings, plan.hits, plan.guarded
    )
