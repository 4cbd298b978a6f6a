"""Times in a recording, and the files that moments are read from."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from core.serialize import pack
from tests.support.recordings import WALL, record, sample_updates
from tests.support.snapshots import small_host
from tui.command import CommandError
from tui.moments import Moment, compared, moment_of, newest_file

UPDATES = sample_updates()  # one a second


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story") / "story.vnetrec"
    record(path, UPDATES)
    return path


def clock(second: float, form: str = "%H:%M:%S") -> str:
    return time.strftime(form, time.localtime(WALL + second))


@pytest.mark.parametrize(
    ("when", "place"),
    [
        ("", 5), ("+0s", 0), ("+2", 2), ("+2.5s", 2), ("-0s", 5), ("-1s", 4), ("-5s", 0), ("+5s", 5),
        (clock(3), 3), (clock(3, "%Y-%m-%dT%H:%M:%S"), 3), (clock(5, "%Y-%m-%d %H:%M:%S"), 5),
    ],
)  # fmt: skip
def test_a_time_names_the_last_moment_before_it(story: Path, when: str, place: int) -> None:
    found = moment_of(f"{story}@{when}" if when else str(story))
    assert found.place == place
    assert found.snapshot.taken_at == UPDATES[place].snapshot.taken_at


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("-6s", "it has moments from"), ("+6s", "it has moments from"), (clock(-60), "it has moments from"),
        ("2001-01-01T00:00", "it has moments from"), ("noon", "it isn't a clock or a span"),
        ("25:00", "it isn't a clock or a span"), ("\x1b[1m", "it isn't a clock or a span"),
    ],
)  # fmt: skip
def test_a_time_that_it_does_not_have(story: Path, when: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason) as caught:
        moment_of(f"{story}@{when}")
    assert "Try: story.vnetrec@" in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_clock_after_midnight_is_that_of_the_last_day(tmp_path: Path) -> None:
    """A recording from 23:59:58 on: 23:59:59 is yesterday, as seen from its end."""
    midnight = time.mktime(time.strptime("2026-01-31 00:00:00", "%Y-%m-%d %H:%M:%S"))
    path = tmp_path / "night.vnetrec"
    record(path, UPDATES[:5], [(midnight - 2 + second, 10.0 + second) for second in range(5)])
    assert moment_of(f"{path}@23:59:59").place == 1
    assert moment_of(f"{path}@00:00:01").place == 3


def test_a_name_with_an_at_sign_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "host@noon.vnet"
    path.write_bytes(pack(small_host()))
    assert moment_of(str(path)).source == "host@noon.vnet"


def test_times_of_differences_in_one_recording(story: Path) -> None:
    """The link was added in the fourth second; the MTU changed last in the fifth (events have it)."""
    found = compared(moment_of(f"{story}@+0s"), moment_of(str(story)))
    times = {each.sentence.split(" ")[0]: each.at - WALL for each in found}
    assert [each.at for each in found] == sorted((each.at for each in found), reverse=True)
    assert times == {"the": 4, "link": 3}


def test_times_backwards_are_those_of_the_same_changes(story: Path) -> None:
    found = compared(moment_of(str(story)), moment_of(f"{story}@+0s"))
    assert [(each.action, each.at - WALL) for each in found if "late0" in each.sentence] == [("removed", 3)]


def test_a_dump_can_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(pack(small_host()),))
    writer.start()
    assert moment_of(str(pipe)).snapshot.nets == small_host().nets
    writer.join()


def test_moments_of_two_files_have_no_times(story: Path, tmp_path: Path) -> None:
    path = tmp_path / "now.vnet"
    path.write_bytes(pack(UPDATES[5].snapshot))
    found = compared(moment_of(f"{story}@+0s"), moment_of(str(path)))
    assert found and all(each.at == 0 for each in found)


def test_this_host_is_read_on_request() -> None:
    found = moment_of("now", small_host)
    assert isinstance(found, Moment) and found.source == "now" and found.path is None


def test_the_newest_regular_file_is_the_usual_other_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_file() is None
    for age, name in enumerate(("new.vnetrec", "old.vnet", "older.tar.gz")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (WALL - age, WALL - age))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "link.vnet").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.vnet")
    (tmp_path / "strange.vnet").touch()
    if os.geteuid() == 0:
        os.chown(tmp_path / "strange.vnet", 1234, 1234)
    else:
        (tmp_path / "strange.vnet").unlink()
    assert newest_file() == tmp_path / "new.vnetrec"
