"""Run a command, or the dashboard, in a lab of several hosts.

The dashboard runs on one host at a time. It asks to go to another one by writing "HOST VIEW" to a pipe before
it ends; then the launcher opens it there.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

from core.lab import LabError, check_rights
from core.lab.hosts import hostname
from core.lab.lab import print_progress, shell_code
from core.tools import python_command, python_environment
from tui.command import CommandError, require_terminal
from tui.services import LAB_HOSTS, LabHosts
from tui.suspended import take_terminal

if TYPE_CHECKING:
    from core.lab.hosts_lab import HostsLab

_DASHBOARD_OPTIONS = {"--ascii", "--write"}
_LONGEST_REQUEST = 1000


def run_on_hosts(count: int, traffic: bool, words: list[str]) -> int:
    """Build the hosts and run a command on the first one; returns its exit code.

    Raises CommandError.
    """
    is_dashboard = words[0] == "vnet-tui" and set(words[1:]) <= _DASHBOARD_OPTIONS
    try:
        check_rights()
        if is_dashboard:
            require_terminal()  # checked before the lab is built
        from core.lab.hosts_lab import HostsLab

        with HostsLab(count, traffic, print_progress) as lab:
            if is_dashboard:
                return _run_dashboards(lab, words[1:])
            if words[0] == "vnet-tui":
                argv = python_command("tui.cli", *words[1:])
                return shell_code(lab.hosts[0].run_inside(argv, python_environment()))
            return shell_code(lab.hosts[0].run_inside(words))
    except LabError as error:
        again = f"vnet-tui demo --hosts {count}"
        raise CommandError(str(error).replace("vnet-tui demo", again)) from None


def _run_dashboards(lab: HostsLab, flags: list[str]) -> int:
    """Run the dashboard on one host after another until the user quits."""
    current, view = 0, ""
    while True:
        request, report = os.pipe()
        given = {"names": [hostname(one + 1) for one in range(lab.count)], "current": current}
        given |= {"view": view, "report": report}
        with os.fdopen(request, "rb") as stream:
            try:
                code = lab.hosts[current].run_inside(
                    python_command("tui.cli", *flags),
                    python_environment(**{LAB_HOSTS: json.dumps(given)}),
                    pass_fds=[report],
                )
            finally:
                os.close(report)
                take_terminal()  # after a shell in a container the dashboard's own group had it
            asked = stream.read(_LONGEST_REQUEST).decode().split()
        if code or not asked:
            return shell_code(code)
        current, view = int(asked[0]), asked[1]
        print_progress(hostname(current + 1))  # seen until the dashboard is painted


def given_hosts(text: str) -> LabHosts | None:
    """Return the hosts that the launcher passed in a variable, None if it isn't valid."""
    try:
        given = json.loads(text)
        report = int(given["report"])
        os.set_inheritable(report, False)
        hosts = tuple(map(str, given["names"])), int(given["current"]), str(given["view"])
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return LabHosts(*hosts, partial(_request, report))


def _request(report: int, host: int, view: str) -> None:
    os.write(report, f"{host} {view}".encode())
