"""The command line and the Textual dashboard."""

import sys
from types import TracebackType


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback, but none for Ctrl-C while modules are imported."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show_error
__version__ = "0.1.0"

# Checked before an import that an older Python can't parse.
if sys.version_info < (3, 12):  # noqa: UP036
    sys.exit(
        f"vnet-tui: can't run under Python {sys.version_info[0]}.{sys.version_info[1]}: "
        "Python 3.12 or newer is needed. Try: make setup, then .venv/bin/vnet-tui"
    )
