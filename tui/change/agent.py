"""`vnet-tui agent`: runs the agent until it is told to stop, or prints a systemd unit that does."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core.agent import Agent
from core.text import safe
from tui.change import unit
from tui.change.rights import require_rights
from tui.errors import CommandError


def run(options: argparse.Namespace) -> int:
    """Blocks until SIGTERM or Ctrl-C; what it does is said on standard output, a line each."""
    if options.unit:
        sys.stdout.write(unit.render(options.metrics, options.accelerate, options.strict))
        return 0
    require_rights()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _accelerating(options.accelerate, options.strict), _serving(options.metrics):
        try:
            Agent(_say, stop).run()
        except OSError as error:
            raise CommandError(f"the agent cannot hear the kernel: {error.strerror}") from error
    return 0


@contextmanager
def _accelerating(targets: list[str], strict: bool) -> Iterator[None]:
    """Keep the fast path up for these while the body runs."""
    if not targets:
        yield
        return
    from tui.fastpath.keeping import Kept

    kept = Kept(targets, _say, strict)
    kept.start()
    try:
        yield
    finally:
        kept.close()


def _say(text: str) -> None:
    print(safe(text), flush=True)


@contextmanager
def _serving(address: str) -> Iterator[None]:
    """Serve metrics while the body runs, where an address is given. Raises CommandError."""
    if not address:
        yield
        return
    try:
        # Loaded for those alone who ask for metrics.
        from core.metrics import MetricsError, MetricsServer
        from tui.fastpath.keeping import Numbers
    except ImportError as error:
        raise CommandError(
            f"metrics need {safe(error.name or str(error))}: pip install {error.name}"
        ) from error
    try:
        server = MetricsServer(address, _say, Numbers())
    except MetricsError as error:
        raise CommandError(safe(str(error))) from error
    try:
        yield
    finally:
        server.close()
