"""Apply the fix of a finding: preview it, ask, and change the host."""

from __future__ import annotations

import argparse

from core.model.fix import Fix
from core.plan import Plan, Refused
from core.plan.requests import Repair
from core.text import failure_sentence, safe
from core.topology import Topology
from tui.cli.console import approve
from tui.cli.perform import REPAIR, perform, plan_requests
from tui.command import CommandError

_DEFAULTS = {"dry_run": False, "json": False, "yes": False}


def apply_fix(options: argparse.Namespace, fix: Fix) -> int:
    """Apply a fix after asking, or print its commands; returns the exit code.

    `options` may have `yes` (don't ask), `dry_run` and `json`. Raises CommandError.
    """
    wanted = argparse.Namespace(**(_DEFAULTS | vars(options)))
    if not fix.steps:
        why = "vnet-tui can't change this itself"
        raise CommandError(failure_sentence(f"can't {safe(fix.sentence)}", why, safe(fix.command)))
    request = Repair(fix.sentence, fix.steps)

    def planner(topology: Topology) -> Plan | Refused:
        return plan_requests((request,), topology)

    return perform(wanted, planner, REPAIR, None if wanted.yes or wanted.json else _approve)


def _approve(plan: Plan) -> bool:
    return approve(plan, "Apply?")
