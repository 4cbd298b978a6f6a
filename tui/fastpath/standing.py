"""How the fast path stands: the holder's answer as a model value."""

from __future__ import annotations

from typing import Any

from bpf.rpc import NotRunning, ask
from bpf.verdicts import VERDICTS
from core.model import FastPath, FastPort
from tui.fastpath import leftover

WORDS = {verdict.name: verdict.words for verdict in VERDICTS}
SOON = 3.0  # seconds that somebody who looks waits for an answer


def read_fast_path(measure: bool = False, flows: bool = False, patience: float = SOON) -> FastPath:
    """How it stands in this network namespace; on demand it measures what a packet costs and counts flows.
    A command, which acts on the answer or is all about it, has more patience than a dashboard."""
    try:
        answer = ask({"do": "status", "measure": measure, "flows": flows}, patience=patience)
    except NotRunning:
        return FastPath(words=WORDS, left=leftover.is_there())
    except PermissionError:
        return FastPath("hidden", words=WORDS)
    except (OSError, ValueError):
        return FastPath("silent", words=WORDS)
    return of_answer(answer)


def of_answer(answer: dict[str, Any]) -> FastPath:
    """The holder's answer (docs/fast-path.md) as a value."""
    ports = [
        FastPort(one["name"], one["ifindex"], one["role"], one["verdicts"])
        for one in sorted(answer["ports"], key=lambda one: (one["role"], one["name"]))
    ]
    return FastPath(
        state=answer["state"],
        targets=tuple(answer["targets"]),
        unknown=tuple(answer["unknown"]),
        bridges=tuple(answer["bridges"]),
        reasons=tuple(answer["reasons"]),
        refused=answer["refused"],
        captured=tuple(answer["captured"]),
        ports=tuple(ports),
        verdicts=answer["verdicts"],
        words=WORDS,
        ns_per_packet=answer.get("ns_per_packet"),
        flows=answer.get("flows"),
        flows_limit=answer["flows_limit"],
        generation=answer["generation"],
        mark_mask=answer["mark_mask"],
        strict=bool(answer.get("strict")),
        tied=bool(answer.get("tied")),
        pid=answer["pid"],
    )
