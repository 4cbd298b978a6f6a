"""What can be typed after `:`: the names of views, with a filter if wanted, and of some actions."""

from __future__ import annotations

from tui.present import views
from tui.present.views import View

# Actions of the dashboard that have a name of their own, under it.
ACTIONS = (
    "help", "log", "pause", "problems", "quit", "refresh", "record", "theme", "undo", "write", "bundle",
)  # fmt: skip


def understood(text: str) -> tuple[View, str] | str | None:
    """The view that the text names and the filter behind it, or the name of an action, or None."""
    word, _, rest = text.strip().partition(" ")
    word = word.casefold()
    view = views.view_named(word)
    if view is not None:
        return view, rest.strip()
    return next((action for action in ACTIONS if word and action.startswith(word)), None)


def completed(text: str) -> str:
    """The text with its word made whole, as it stands where it could become several words."""
    found = understood(text)
    if found is None or " " in text:
        return text
    return found if isinstance(found, str) else found[0].name
