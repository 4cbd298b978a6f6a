"""Writing in a folder of another user: planted links and files are never followed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import files
from core.files import PUBLIC, WriteError, create_new, write_whole

OTHER = 1234
root = pytest.mark.root


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("root's own")
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """Return a world-writable folder of another user."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o777)
    os.chown(folder, OTHER, OTHER)
    yield folder


def planted(path: Path, target: Path) -> Path:
    """Create a symbolic link of that user."""
    path.symlink_to(target)
    os.chown(path, OTHER, OTHER, follow_symlinks=False)
    return path


def mode_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    assert stat.S_ISREG(status.st_mode)
    return status.st_uid, stat.S_IMODE(status.st_mode)


@root
def test_no_planted_name_is_followed(theirs: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files have no predictable name; one that exists isn't used either."""
    target = theirs / "host.vnet"
    names = [f".host.vnet.{pid}" for pid in range(os.getpid() - 20, os.getpid() + 20)]
    names += ["host.vnet.tmp", "host.new", ".host.vnet.tmp", "host.vnet~", ".vnet-tui.0"]
    for name in names:
        planted(theirs / name, victim)
    assert not write_whole(target, b"content")
    assert victim.read_text() == "root's own" and target.read_bytes() == b"content"
    assert mode_of(target) == (os.geteuid(), 0o600)
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    with pytest.raises(WriteError, match="File exists"):
        write_whole(target, b"more")
    assert victim.read_text() == "root's own" and target.read_bytes() == b"content"
    assert sorted(each.name for each in theirs.iterdir()) == sorted([*names, "host.vnet"])


@root
@pytest.mark.parametrize("write", [lambda path: write_whole(path, b"x"), create_new])
def test_a_link_in_place_of_the_file_is_refused(theirs: Path, victim: Path, write: object) -> None:
    target = planted(theirs / "host.vnet", victim)
    with pytest.raises(WriteError, match=r"can't write .*host\.vnet: it (is|exists) .*\. Try: "):
        write(target)  # type: ignore[operator]
    assert victim.read_text() == "root's own" and target.is_symlink()


@root
def test_a_link_of_another_user_in_the_path_is_refused(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    planted(theirs / "out", tmp_path / "etc")
    for write in (lambda path: write_whole(path, b"x"), create_new):
        with pytest.raises(WriteError, match="out is another user's symbolic link"):
            write(theirs / "out" / "passwd")
    assert not list((tmp_path / "etc").iterdir())


@root
def test_a_file_or_pipe_of_another_user_is_not_written_to(theirs: Path) -> None:
    target = theirs / "host.vnet"
    target.write_text("old")
    os.chown(target, OTHER, OTHER)
    target.chmod(0o666)
    with target.open() as held:
        assert write_whole(target, b"secret")
        assert held.read() == "old"
    assert mode_of(target) == (os.geteuid(), 0o600) and target.read_bytes() == b"secret"
    os.mkfifo(theirs / "pipe")
    os.chown(theirs / "pipe", OTHER, OTHER)
    with pytest.raises(WriteError, match="belongs to another user"):
        write_whole(theirs / "pipe", b"secret")


def test_the_users_own_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert not write_whole(tmp_path / "c" / ".." / "a" / "x", b"1")
    assert write_whole(tmp_path / "c" / "x", b"2", PUBLIC)
    assert (tmp_path / "a" / "x").read_bytes() == b"2"
    os.close(create_new(Path(f"/proc/{os.getpid()}/root{tmp_path}/c/y")))
    assert mode_of(tmp_path / "a" / "y") == (os.geteuid(), 0o600)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WriteError, match="Too many levels"):
        write_whole(tmp_path / "loop" / "x", b"")


@pytest.mark.parametrize("name", ["", "missing/x", "file/x", "folder"])
def test_unwritable_paths_are_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=r"can't write .*: .+\. Try: "):
        write_whole(tmp_path / name, b"x")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_pipes_devices_and_open_files_are_written_into(tmp_path: Path) -> None:
    before = Path("/dev/null").stat()
    assert not write_whole(Path("/dev/null"), b"x")
    assert Path("/dev/null").stat().st_ino == before.st_ino
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"content")
    reader.join()
    assert got == [b"content"] and pipe.is_fifo()
    with (tmp_path / "open").open("wb") as file:
        file.write(b"before ")
        file.flush()
        for folder in ("/dev/fd", "/proc/self/fd"):
            write_whole(Path(folder, str(file.fileno())), b"after ")
    assert (tmp_path / "open").read_bytes() == b"before after after "


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    os.close(create_new(tmp_path / "x"))
    with pytest.raises(WriteError, match=r"it exists already\. Try: "):
        create_new(tmp_path / "x")
