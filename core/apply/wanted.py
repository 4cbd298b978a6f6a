"""What the agent keeps up: attachments of containers that restart, and the text of our own rules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from core.apply.state import StateError, boot_id, state_directory, sync_directory, unusable
from core.ops import Want
from core.ops.record import from_record, to_record


def add(want: Want) -> None:
    """Keep a container attached. One that is kept already is replaced. Raises StateError."""
    _write_attachments([*_others(want), want])


def remove(want: Want) -> None:
    """Keep it no longer; it need not be kept. Raises StateError."""
    _write_attachments(_others(want))


def attachments() -> tuple[Want, ...]:
    """The attachments that are kept. Raises StateError for a file that no version of ours wrote."""
    path = _attachments_path()
    try:
        found = from_record(json.loads(path.read_text()))
        return tuple(want for want in found if isinstance(want, Want))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{path} cannot be read ({error}); move it away and attach again") from error


def note_rules(text: str) -> None:
    """Remember what our own tables are made to say. Raises StateError."""
    _write(_rules_path(), {"boot": boot_id(), "text": text}, durable=False)


def rules() -> str:
    """What our own tables were last made to say since the machine started, "" where that is not known."""
    try:
        noted = json.loads(_rules_path().read_text())
        return str(noted["text"]) if noted["boot"] == boot_id() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _others(want: Want) -> list[Want]:
    key = (want.container, want.network)
    return [one for one in attachments() if (one.container, one.network) != key]


def _write_attachments(wanted: list[Want]) -> None:
    _write(_attachments_path(), [to_record(want) for want in wanted], durable=True)


def _write(path: Path, value: Any, durable: bool) -> None:
    """Replace a file whole: whoever reads it, after our crash too (`durable`: the machine's too), finds the
    old or the new text."""
    new = path.with_suffix(".new")
    try:
        with new.open("w") as file:
            json.dump(value, file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        new.replace(path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise StateError(unusable(path.parent, error)) from error


def _attachments_path() -> Path:
    return state_directory() / "wanted.json"


def _rules_path() -> Path:
    return state_directory() / "rules.json"
