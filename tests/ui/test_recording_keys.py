"""R records the host and shows that it does; B writes a bundle."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from core.model import RECORDING_DEMAND
from core.recording import Recording
from core.serialize import unpack, unpack_both
from tests.support.recordings import fast_flows, sample_updates
from tests.support.snapshots import hostile_host, rates_of, small_host
from tests.ui.driver import FedSource, Person, dashboard
from tui.command import free_path, size_of, span_of

UPDATES = sample_updates()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, ending: str) -> Path:
    found = list(folder.glob(f"*{ending}"))
    assert len(found) == 1
    return found[0]


async def wait_until_gone(person: Person, text: str) -> None:
    await person.until(lambda: text not in person.text, f"the end of {text!r}")


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_r_starts_and_ends_a_recording(folder: Path, size: tuple[int, int]) -> None:
    async with dashboard(UPDATES[0].snapshot, size) as person:
        await person.press("R")
        assert "● REC 0:0" in person.lines[0]
        await person.eventually("R stops it")
        assert person.source.demands[-1] >= RECORDING_DEMAND
        await person.feed(
            UPDATES[1].snapshot, rates=rates_of(UPDATES[1].snapshot), changes=UPDATES[1].changes
        )
        await person.press("p")
        await person.feed(
            UPDATES[2].snapshot, changes=UPDATES[2].changes
        )  # also while the dashboard is paused
        await person.press("R")
        await wait_until_gone(person, "REC")
        await person.eventually("Recorded")
        assert not person.source.demands[-1] >= RECORDING_DEMAND
    recording = Recording(written(folder, ".vnetrec"))
    last = recording.moment(len(recording.frames) - 1)
    assert last.snapshot.taken_at == UPDATES[2].snapshot.taken_at
    recorded = [change for changes in recording.changes() for change in changes]
    assert recorded == [*UPDATES[1].changes, *UPDATES[2].changes]
    assert recording.ended


async def test_a_recording_starts_with_the_current_state_and_quitting_completes_it(folder: Path) -> None:
    async with dashboard(UPDATES[0].snapshot) as person:
        await person.press("R")
        await person.press("q")
    recording = Recording(written(folder, ".vnetrec"))
    assert recording.moment(0).snapshot.host == UPDATES[0].snapshot.host
    assert not recording.notice


async def test_an_error_of_the_file_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.screens.record.free_path", lambda *_: Path("no/such.vnetrec"))
    async with dashboard(small_host()) as person:
        await person.press("R")
        await person.eventually("No such file")
        assert "REC" not in person.lines[0]


@pytest.mark.parametrize("snapshot", [small_host(), hostile_host()])
async def test_b_writes_a_bundle(folder: Path, snapshot: object) -> None:
    async with dashboard(snapshot) as person:  # type: ignore[arg-type]
        await person.press("B")
        await person.eventually("It contains addresses")
    path = written(folder, ".tar.gz")
    assert path.stat().st_mode & 0o777 == 0o600
    back = unpack(path.read_bytes())
    assert back.host == snapshot.host and back.nets == snapshot.nets  # type: ignore[attr-defined]
    with tarfile.open(path) as archive:
        texts = {name.split("/", 1)[1]: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    assert b"addresses" in texts["README.txt"]
    assert json.loads(texts["about.json"])["vnet-tui"]
    assert b"DOCKER" in b"".join(text for name, text in texts.items() if name.startswith("rules/"))
    for name, text in texts.items():
        printed = text.decode()
        assert "\x1b" not in printed and "\u202e" not in printed, name


async def test_b_reads_the_fast_path_if_no_update_has_it(folder: Path) -> None:
    source = FedSource(small_host())
    source.fast_flows = lambda: fast_flows(3)  # type: ignore[attr-defined]
    async with dashboard(source=source) as person:
        await person.press("B")
        await person.eventually("It contains addresses")
    _, recorded = unpack_both(written(folder, ".tar.gz").read_bytes())
    assert recorded is not None and len(recorded.entries) == 3


async def test_a_file_can_be_bundled_but_not_recorded(folder: Path) -> None:
    async with dashboard(source=FedSource(small_host(), live=False)) as person:
        await person.press("R")
        await person.eventually("can't record a file")
        await person.press("B")
        await person.eventually("It contains addresses")
    assert unpack(written(folder, ".tar.gz").read_bytes()).host == small_host().host


def test_file_names_are_safe_and_unused(folder: Path) -> None:
    path = free_path("record", "../../a b\n\x1b[1m", ".vnetrec")
    assert path.parent == folder and path.name.startswith("vnet-record-") and path.name.isprintable()
    assert " " not in path.name and "/" not in path.name
    path.touch()
    assert free_path("record", "../../a b\n\x1b[1m", ".vnetrec") != path


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_999, "1 MB"), (64_000_000, "64 MB")],
)
def test_sizes_of_files(size: int, words: str) -> None:
    assert size_of(size) == words


def test_durations() -> None:
    assert [span_of(seconds) for seconds in (0, 59.9, 60, 3601)] == ["0:00", "0:59", "1:00", "60:01"]
