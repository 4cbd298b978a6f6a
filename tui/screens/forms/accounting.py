"""The question whether the kernel shall count the traffic of connections."""

from __future__ import annotations

from core.plan.requests import CountTraffic
from tui.screens.forms.form import Form


def counting_form(namespaces: tuple[int, ...]) -> Form | None:
    """The question for namespaces that do not count; None where there is none."""
    request = CountTraffic(namespaces)
    title = "Count traffic"
    return Form(title, "light", lambda values, topology: (request,), asks=True) if namespaces else None
