"""Plans that have the kernel count the traffic of connections."""

from __future__ import annotations

from core.ops import SetSysctl
from core.plan.base import require, when
from core.plan.dispatch import draft_steps
from core.plan.draft import Draft
from core.plan.requests import CountTraffic
from core.text import safe

SETTING = "net.netfilter.nf_conntrack_acct"


@draft_steps.register
def _(request: CountTraffic, draft: Draft) -> str:
    found = [ns for ns in request.namespaces if ns in draft.snapshot.namespaces]
    require(when(not found, "every namespace with connections counts their traffic already"))
    for ns in found:
        draft.do(SetSysctl(SETTING, "1", "0", draft.place_of(ns)))
    draft.warn("only connections that begin from now on are counted")
    names = [safe(draft.topology.label(ns)) for ns in found]
    return (
        f"count the traffic of connections in {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
    )
