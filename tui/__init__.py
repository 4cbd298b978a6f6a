"""The command line and the Textual dashboard."""

import sys

__version__ = "0.1.0"

# Checked before an import that an older Python can't parse.
if sys.version_info < (3, 12):  # noqa: UP036
    sys.exit(
        f"vnet-tui: can't run under Python {sys.version_info[0]}.{sys.version_info[1]}: "
        "Python 3.12 or newer is needed. Try: make setup, then .venv/bin/vnet-tui"
    )
