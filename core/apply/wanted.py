"""What the agent keeps up: attachments of containers that restart, and the text of our own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.apply.state import StateError, boot_id, state_directory, unusable
from core.files import write_whole
from core.operations import PersistAttachment
from core.operations.record import from_record, to_record
from core.text import safe

_MOST_BYTES = 1 << 24


def add(want: PersistAttachment) -> None:
    """Keep a container attached. One that is kept already is replaced. Raises StateError."""
    _write_attachments([*_others(want), want])


def remove(want: PersistAttachment) -> None:
    """Keep it no longer; it need not be kept. Raises StateError."""
    _write_attachments(_others(want))


def attachments() -> tuple[PersistAttachment, ...]:
    """The attachments that are kept. Raises StateError for a file that no version of ours wrote."""
    path = _attachments_path()
    try:
        found = from_record(_read(path))
        if not isinstance(found, tuple) or not all(map(_is_whole, found)):
            raise ValueError("it holds something else")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = safe(str(error)[:200])
        raise StateError(f"can't read {path}: {why}. Try: move it away and attach again") from error
    return found


def _is_whole(want: Any) -> bool:
    return (
        isinstance(want, PersistAttachment)
        and isinstance(want.container, str)
        and isinstance(want.network, str)
        and isinstance(want.steps, tuple)
    )


def note_rules(text: str) -> None:
    """Remember what our own tables are made to say. Raises StateError."""
    _write(_rules_path(), {"boot": boot_id(), "text": text}, durable=False)


def rules() -> str:
    """What our own tables were last made to say since the machine started, "" where that is not known."""
    try:
        noted = _read(_rules_path())
        return str(noted["text"]) if noted["boot"] == boot_id() else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _others(want: PersistAttachment) -> list[PersistAttachment]:
    key = (want.container, want.network)
    return [one for one in attachments() if (one.container, one.network) != key]


def _write_attachments(wanted: list[PersistAttachment]) -> None:
    _write(_attachments_path(), [to_record(want) for want in wanted], durable=True)


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
    return json.loads(content)


def _write(path: Path, value: Any, durable: bool) -> None:
    """Replace a file whole: whoever reads it, after our crash too (`durable`: the machine's too), finds the
    old or the new text."""
    try:
        write_whole(path, json.dumps(value).encode("ascii"), durable=durable)
    except OSError as error:
        raise StateError(unusable(path.parent, error)) from error


def _attachments_path() -> Path:
    return state_directory() / "wanted.json"


def _rules_path() -> Path:
    return state_directory() / "rules.json"
