"""Files of the journal: order, truncated lines, and entries of unknown form."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.apply import journal
from core.apply.entries import Entry, read
from core.operations import AddAddress, CreateBridge, CreateVeth, NetnsTarget, Operation, SetSizes
from core.state import StateError, boot_id

STEPS: tuple[Operation, ...] = (CreateBridge("br-t"), AddAddress("br-t", "10.77.0.1/24"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VNET_STATE", str(tmp_path))
    return tmp_path / "journal"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time that the journal reads."""
    return lambda seconds: monkeypatch.setattr(journal.time, "time", lambda: seconds)


def record(title: str, begun: int = 0, end: str = "") -> Path:
    made = journal.NewEntryWriter(title, STEPS)
    for step in range(begun):
        made.begin(step)
    if end:
        made.end(end)
    made.close()
    return made.path


def intent(**more: Any) -> str:
    """Return the first line of a change that creates a bridge."""
    step = {"op": "CreateBridge", "name": "br-t"}
    return json.dumps({"title": "by hand", "at": 1e9, "boot": boot_id(), "steps": [step]} | more)


def entry(path: Path) -> Entry:
    found = read(path)
    assert found is not None
    return found


def test_setting_the_clock_back_does_not_change_the_order(
    folder: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, seconds in enumerate((2e9, 1e9, 1e9, 1.5e9)):
        clock(seconds)
        record(f"change {number}", 2, "done")
    assert [one.title for one in journal.history()] == [f"change {number}" for number in (3, 2, 1, 0)]
    monkeypatch.setattr(journal, "_MAX_ENTRIES", 2)
    record("the last", 2, "done")
    assert [one.title for one in journal.history()] == ["the last", "change 3", "change 2"]


def test_a_change_is_named_by_its_number_too(folder: Path) -> None:
    first, second = record("one", 1, "done").stem, record("two", 1, "done").stem
    assert [journal.id_of(one) for one in ("1", "000001", first, "2")] == [first, first, first, second]
    assert [journal.id_of(one) for one in ("", "0", "3", "²")] == ["", "0", "3", "²"]


def test_files_of_earlier_versions_are_older_than_all_with_a_number(folder: Path) -> None:
    folder.mkdir()
    for name in ("20261127-201608-123456ab", "20261127-201608-123455ff"):
        (folder / f"{name}.jsonl").write_text(intent(title=name) + '\n{"end": "done", "errors": []}\n')
    newest = record("new", 2, "done")
    assert newest.name.startswith("000001-")
    assert [one.entry_id for one in journal.history()] == [
        newest.stem, "20261127-201608-123456ab", "20261127-201608-123455ff",
    ]  # fmt: skip


@pytest.mark.parametrize("torn", ['{"beg', '{"begin": 1}', "\x00\x00\x00", '{"end": "do'])
def test_a_truncated_last_line_is_ignored(torn: str) -> None:
    path = record("torn", 1)
    with path.open("a") as file:
        file.write(torn)
    found = entry(path)
    assert (found.end, found.problem, found.begun) == ("", "", 2 if torn.endswith("}") else 1)
    journal.mark(found, "undone", ("taken back",))
    assert (entry(path).end, entry(path).errors) == ("undone", ("taken back",))
    assert not journal.open_entries()


def test_a_truncated_line_in_the_middle_is_skipped() -> None:
    path = record("torn", 1)
    with path.open("a") as file:
        file.write('{"beg{"end": "undone", "errors": []}\n{"begin": 1}\n{"undoing": 1, "boo')
    assert (entry(path).end, entry(path).begun, entry(path).undoing) == ("", 2, None)
    journal.mark(entry(path), "undone")
    assert entry(path).end == "undone"


def test_a_partly_written_line_is_removed() -> None:
    made = journal.NewEntryWriter("full", STEPS)
    before, limits = made.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError):
            made.begin(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert made.path.read_bytes() == before
    made.begin(0)
    made.close()
    assert entry(made.path).begun == 1


DEEP = "[" * 200_000
ODD = {
    "a newer operation": intent(steps=[{"op": "FlyToMoon"}]),
    "a newer field": intent(steps=[{"op": "CreateBridge", "name": "br-t", "wings": 2}]),
    "no operation": intent(steps=[{"op": "Place"}]),
    "a name that is a number": intent(steps=[{"op": "CreateBridge", "name": 7}]),
    "a title that is a number": intent(title=7),
    "a time that is text": intent(at="yesterday"),
    "a time past all calendars": intent(at=1e300),
    "a time that is none": intent(at=float("nan")),
    "steps that are none": intent(steps=5),
    "no intent": "[]",
    "deep nesting": DEEP,
    "half an intent": intent()[:40],
    "an end that is a list": intent() + '\n{"end": ["done"], "errors": []}',
    "an end that is not known": intent() + '\n{"end": "flown", "errors": []}',
    "an odd undo": intent() + '\n{"undoing": "all"}',
    "a line of another kind": intent() + "\n[1]",
    "a deep line": intent() + "\n" + DEEP,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_an_unreadable_entry_blocks_until_it_is_forgotten(folder: Path, text: str) -> None:
    folder.mkdir()
    path = folder / "000007-20261127-201608-aa.jsonl"
    path.write_text(f'{text}\n{{"begin": 0}}\n')
    (found,) = journal.open_entries()
    assert found.problem and not found.steps
    with pytest.raises(StateError, match=str(path)):
        journal.require_readable(found)
    assert record("the next").name.startswith("000008-")
    journal.mark(found, "undone", ("left as it was",))
    assert [one.entry_id for one in journal.open_entries()] != [found.entry_id]
    assert entry(path).end == "undone"


def test_an_intent_without_a_started_step_is_skipped(folder: Path) -> None:
    folder.mkdir()
    for number, text in enumerate(("", "{", intent(steps=[{"op": "FlyToMoon"}]), "\x00" * 4096)):
        (folder / f"{number:06}-20261127-201608-aa.jsonl").write_text(text)
    assert [*journal.history()] == [] and journal.open_entries() == ()


def test_entries_that_are_not_files_are_skipped(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.jsonl").symlink_to("/nonexistent")
    (folder / "b.jsonl").mkdir()
    (folder / "c.jsonl").symlink_to(folder)
    os.mkfifo(folder / "d.jsonl")
    path = record("after all", 2, "done")
    assert [one.entry_id for one in journal.history()] == [path.stem]


def test_entries_that_may_need_an_undo_are_not_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MAX_ENTRIES", 2)
    folder.mkdir()
    foreign = folder / "20261127-201608-123456ab.jsonl"
    foreign.write_text(intent(steps=[{"op": "FlyToMoon"}]) + '\n{"begin": 0}\n')
    (folder / "folder.jsonl").mkdir()
    kept = [record("cut off", 1), record("failed", 2, "failed")]
    for number in range(5):
        record(f"change {number}", 2, "done")
    assert foreign.exists() and all(path.exists() for path in kept)
    assert len([*journal.history()]) < 7


def test_an_interrupted_undo_is_listed_with_its_steps() -> None:
    path = record("undone half", 2, "done")
    writer = journal.reopen(entry(path))
    writer.undoing(2)
    for number in (0, 1, 2):
        writer.undo(number)
    writer.close()
    found = entry(path)
    assert (found.end, found.was_done, found.undoing) == ("", True, 2)
    assert (found.undone, found.in_flight) == ({0, 1}, {2})
    assert journal.open_entries() == (found,)
    writer = journal.reopen(found)
    writer.undoing(2)
    writer.undo(2)
    writer.not_undone(2)
    writer.undo(3)
    writer.end("failed", ("busy",))
    writer.close()
    assert (entry(path).end, entry(path).undone, entry(path).in_flight) == ("failed", {0, 1, 3}, set())


def operations() -> Iterator[Operation]:
    inside = NetnsTarget(pid=7, inode=4026531840, others=(8, 9))
    yield CreateVeth("v-web", "eth0", peer_place=inside)
    yield SetSizes("v-web", (("gso_max_size", 65536),), (("gso_max_size", 262144),))


@pytest.mark.parametrize("step", operations(), ids=lambda step: type(step).__name__)
def test_targets_and_pairs_are_read_back(step: Operation) -> None:
    made = journal.NewEntryWriter("once", (step,))
    made.close()
    assert entry(made.path).steps == (step,)
