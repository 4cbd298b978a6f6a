"""The one table of who plans which kind of request."""

from __future__ import annotations

from functools import singledispatch

from core.plan.draft import Draft


@singledispatch
def draft_steps(request: object, draft: Draft) -> str:
    """Add the steps that a request needs to a draft; returns its title. Raises Refusal."""
    raise TypeError(f"no way to plan {request!r}")
