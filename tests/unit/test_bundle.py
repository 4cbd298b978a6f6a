"""Bundles as files: their content, and archives that aren't bundles."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.model import FASTFLOW_DTYPE, Change, FastFlows, LinkStats, Snapshot, link_ref
from core.serialize import CorruptFile, to_json, unpack, unpack_both
from core.topology import Topology
from tests.support.recordings import sample_updates
from tests.support.snapshots import HOSTILE_NAME, hostile_host, small_host
from tests.ui.test_conntrack_rows import HOST
from tests.ui.test_conntrack_rows import snapshot as connections
from tui.bundle import BundleContents, bundle_of
from tui.command import CommandError, save
from tui.services import LoggedChange

UPDATES = sample_updates()


def save_bundle(path: Path, kept: BundleContents) -> str:
    return save(path, bundle_of(path.name, kept))


def files_of(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            member.name.split("/", 1)[1]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive
        }


def archive_of(**files: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"some/{name.replace('_', '.')}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def test_a_bundle_contains_all_parts_of_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    seen = UPDATES[-1]
    assert seen.rates is not None
    link = next(seen.snapshot.links())
    changes = (Change(1.7e9, "added", link_ref(link.key), HOSTILE_NAME),)
    log = (LoggedChange("a change", 1.7e9, ["ip link add x"], "done"),)
    said = save_bundle(
        path, BundleContents(Topology(seen.snapshot), None, seen.rates.counters, seen.fast, changes, log)
    )
    assert said.startswith(f"wrote {path}, ") and path.stat().st_mode & 0o777 == 0o600
    files = files_of(path)
    assert next(iter(files)) == "snapshot.json"
    assert {
        "README.txt",
        "about.json",
        "show.txt",
        "show.json",
        "problems.txt",
        "counters.json",
        "fastflows.json",
    } < set(files)
    assert "ip link add x" in files["commands.json"]
    assert (
        "web1" in files["show.txt"]
        and "MASQUERADE" in files[next(name for name in files if name.startswith("rules/"))]
    )
    assert "web1 172.18.0.2:41822 -> [SNAT 192.0.2.1:41822]" in files["flows.txt"]
    assert "\x1b" not in files["events.txt"] and "evil" in files["events.txt"]
    assert to_json(unpack(path.read_bytes())) == to_json(seen.snapshot)
    assert [each.name for each in tmp_path.iterdir()] == ["b.tar.gz"]


def test_fast_flows_are_written_and_read_back(tmp_path: Path) -> None:
    path, taken = tmp_path / "b.tar.gz", connections()
    entry = taken.conntracks[HOST].entries[0]
    fast = np.zeros(1, FASTFLOW_DTYPE)
    for name in ("family", "l4_proto"):
        fast[name] = entry[name]
    pairs = (("src", "orig_src"), ("dst", "orig_dst"), ("sport", "orig_sport"), ("dport", "orig_dport"))
    for ours, theirs in pairs:
        fast[ours] = entry[theirs]
    fast["packets"], fast["bytes"], fast["live"] = 9000, 9_000_000, True
    save_bundle(path, BundleContents(Topology(taken), fast=FastFlows(HOST, fast, 5.0)))
    lines = files_of(path)["flows.txt"].splitlines()
    assert lines[0].endswith(" fast") and all(line.endswith(" kernel") for line in lines[1:])
    _, back = unpack_both(path.read_bytes())
    assert back is not None and (back.ns, back.taken_at) == (HOST, 5.0)
    assert np.array_equal(back.entries, fast)


SNAPSHOT = to_json(small_host())


@pytest.mark.parametrize(
    "archive",
    [SNAPSHOT, archive_of(snapshot_json=SNAPSHOT), archive_of(snapshot_json=SNAPSHOT, fastflows_json=b"{"),
     archive_of(snapshot_json=SNAPSHOT, fastflows_json=b'{"ns": 1, "entries": {}, "taken_at": 0}')],
    ids=["a dump", "no fast flows", "half of them", "no columns"],
)  # fmt: skip
def test_unreadable_fast_flows_are_left_out(archive: bytes) -> None:
    assert unpack_both(archive)[1] is None


@pytest.mark.parametrize("snapshot", [Snapshot(), hostile_host(), small_host(taken_at=-1e12)])
def test_bundles_of_other_hosts(tmp_path: Path, snapshot: Snapshot) -> None:
    path = tmp_path / "a b\n[x]\x1b.tar.gz"
    save_bundle(path, BundleContents(Topology(snapshot), counters=LinkStats(0.0)))
    assert to_json(unpack(path.read_bytes())) == to_json(snapshot)


def test_an_unwritable_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"can't write .*No such file or directory\. Try: "):
        save_bundle(tmp_path / "no" / "b.tar.gz", BundleContents(Topology(Snapshot())))


def test_a_bundle_packed_by_another_program_opens() -> None:
    text = to_json(small_host())
    assert to_json(unpack(archive_of(other=b"x" * 700, snapshot_json=text, more=b""))) == text


@pytest.mark.parametrize(
    "archive",
    [
        archive_of(other=b"x"), archive_of(snapshot_json=b"{}"), archive_of(snapshot_json=b""),
        gzip.compress(gzip.decompress(archive_of(snapshot_json=b"x" * 5000))[:2048]),
    ],
    ids=["no snapshot", "an empty object", "an empty file", "cut off"],
)  # fmt: skip
def test_archives_that_are_not_bundles(archive: bytes) -> None:
    with pytest.raises(CorruptFile) as caught:
        unpack(archive)
    assert caught.value.try_ and not caught.value.try_.endswith(".")


WHOLE = gzip.decompress(archive_of(first=b"x" * 600, snapshot_json=to_json(Snapshot())))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=12))
def test_random_bytes_in_an_archive(place: int, some: bytes) -> None:
    broken = WHOLE[:place] + some + WHOLE[place + len(some) :]
    try:
        assert isinstance(unpack(gzip.compress(broken)), Snapshot)
    except CorruptFile as error:
        assert error.what


def test_a_long_list_is_cut_in_text_and_complete_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.bundle._MOST_ROWS", 2)
    monkeypatch.setattr("core.serialize._LIST_PIECE", 3)
    path, snapshot = tmp_path / "b.tar.gz", connections()
    save_bundle(path, BundleContents(Topology(snapshot)))
    files = files_of(path)
    listed = json.loads(files["show.json"])["conntrack"]
    assert len(listed) > 3
    assert f"... and {len(listed) - 2} more\n" in files["show.txt"]
    assert to_json(unpack(path.read_bytes())) == to_json(snapshot)
    assert json.loads(to_json(snapshot))["snapshot"].keys() >= {"nets", "conntracks"}
