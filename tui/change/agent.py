"""`vnet-tui agent`: runs the agent until it is told to stop, or prints a systemd unit that does."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import threading

from core.agent import Agent
from core.text import safe
from tui.change.rights import require_rights
from tui.errors import CommandError

_UNIT = """\
[Unit]
Description=Keeps up the networks that vnet-tui made
After=network.target docker.service

[Service]
ExecStart={program} agent
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


def run(options: argparse.Namespace) -> int:
    """Blocks until SIGTERM or Ctrl-C; what it does is said on standard output, a line each."""
    if options.unit:
        sys.stdout.write(_UNIT.format(program=shutil.which("vnet-tui") or "/usr/local/bin/vnet-tui"))
        return 0
    require_rights()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        Agent(lambda text: print(safe(text), flush=True), stop).run()
    except OSError as error:
        raise CommandError(f"the agent cannot hear the kernel: {error.strerror}") from error
    return 0
