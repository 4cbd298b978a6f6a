"""The agent's files, changed by other programs or truncated: refused, or ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.operations import PersistAttachment, attachments
from core.operations.settings import save_rules, saved_rules
from core.state import StateError, boot_id

WANT = PersistAttachment("docker:abc", "shop", ())
BAD = {
    "empty": b"",
    "number": b"1", "null": b"null", "text": b'"x"', "numbers": b"[1,2]", "deep": b"[" * 100_000,
    "binary": b"\xff\xfe\0", "unknown": b'[{"op":"FlyToMoon"}]', "large": b" " * (17 << 20) + b"[]",
    "types": b'[{"op":"Want","container":7,"network":[],"steps":{}}]', "digits": b"9" * 10_000,
    "mixed": b'[{"op":"Place"}]', "infinite": b"[1e999]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VNET_STATE", str(tmp_path))
    return tmp_path


def test_files_are_read_back_and_only_the_owner_has_access(state: Path) -> None:
    attachments.save_attachment(WANT)
    save_rules("table inet vnet {}")
    assert attachments.read_attachments() == (WANT,) and saved_rules() == "table inet vnet {}"
    assert {path.name: path.stat().st_mode & 0o777 for path in state.iterdir()} == {
        "wanted.json": 0o600, "rules.json": 0o600,
    }  # fmt: skip
    attachments.remove_attachment(WANT)
    assert attachments.read_attachments() == ()


@pytest.mark.parametrize("name", BAD)
def test_malformed_files(state: Path, name: str) -> None:
    for file in ("wanted.json", "rules.json"):
        (state / file).write_bytes(BAD[name])
    with pytest.raises(StateError, match=r"can't read .*wanted\.json: .+\. Try: move it away") as caught:
        attachments.read_attachments()
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert saved_rules() == ""


def test_rules_from_before_a_reboot_are_ignored(state: Path) -> None:
    (state / "rules.json").write_text(json.dumps({"boot": boot_id() + "x", "text": "x"}))
    assert saved_rules() == ""
