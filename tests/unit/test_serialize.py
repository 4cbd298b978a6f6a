"""Dump files are read back; damaged ones are refused with a reason."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import serialize
from core.model import CONNTRACK_DTYPE, Conntrack, Engine, Host, Link, NetState, Problem, Snapshot
from core.serialize import CorruptFile, from_json, json_pieces, pack, to_json, unpack
from tests.support.snapshots import HOST, hostile_host, many_namespaces, small_host

RICH = dataclasses.replace(
    small_host(),
    pending=frozenset({"ovs", "links"}),
    part_problems={"docker": (Problem("docker", "no answer", "slow", "wait", HOST),)},
)


def assert_same(one: Snapshot, other: Snapshot) -> None:
    """Compare snapshots, arrays by their values."""
    assert one.conntracks.keys() == other.conntracks.keys()
    for key, table in one.conntracks.items():
        twin = other.conntracks[key]
        assert np.array_equal(table.entries, twin.entries)
        assert twin.entries.dtype == CONNTRACK_DTYPE
        assert dataclasses.replace(table, entries=twin.entries).limit == twin.limit
        assert (table.accounting, table.taken_at) == (twin.accounting, twin.taken_at)
    assert dataclasses.replace(one, conntracks={}) == dataclasses.replace(other, conntracks={})


@pytest.mark.parametrize("snapshot", [Snapshot(), RICH, hostile_host(), many_namespaces(20)])
def test_round_trip(snapshot: Snapshot) -> None:
    assert_same(unpack(pack(snapshot)), snapshot)
    assert_same(from_json(to_json(snapshot)), snapshot)


names = st.text(st.characters(), max_size=20)
numbers = st.integers(0, 2**64 - 1)
links = st.builds(
    Link, st.just(5), st.just(2), names, names, mtu=numbers, master=st.none() | st.integers(0, 99),
    altnames=st.lists(names, max_size=3).map(tuple),
    details=st.dictionaries(names, names | st.booleans() | numbers, max_size=3),
)  # fmt: skip
hosts = st.builds(Host, names, names, numbers, sysctls=st.dictionaries(names, names, max_size=3))


@given(links, hosts, st.floats(-1e15, 1e15))
def test_any_values_round_trip(link: Link, host: Host, at: float) -> None:
    snapshot = Snapshot(
        at, host, nets={5: NetState(5, {2: link}, nsids={1: 2})}, engines={"e": Engine("e", "ok")}
    )
    assert from_json(to_json(snapshot)) == snapshot


def test_a_large_snapshot_is_written_in_small_pieces() -> None:
    """A piece is encoded while all other threads wait."""
    entries = np.zeros(20_000, CONNTRACK_DTYPE)
    entries["orig_src"], entries["id"] = np.arange(16), np.arange(len(entries))
    snapshot = Snapshot(
        conntracks={7: Conntrack(7, entries)}, host=Host(hostname='\U0001f40b\u00e9"' * 200_000)
    )
    pieces = list(json_pieces(snapshot))
    assert max(map(len, pieces)) < 12 * (1 << 18)
    assert json.loads("".join(pieces))["snapshot"]["host"]["hostname"] == snapshot.host.hostname
    assert from_json("".join(pieces).encode()).conntracks[7].entries.tobytes() == entries.tobytes()


@given(st.binary(min_size=CONNTRACK_DTYPE.itemsize, max_size=4 * CONNTRACK_DTYPE.itemsize))
def test_any_conntrack_entries_round_trip(raw: bytes) -> None:
    whole = len(raw) // CONNTRACK_DTYPE.itemsize * CONNTRACK_DTYPE.itemsize
    entries = np.frombuffer(raw[:whole], CONNTRACK_DTYPE).copy()
    entries["counted"] = entries["counted"].view("u1") & 1
    back = from_json(to_json(Snapshot(conntracks={7: Conntrack(7, entries)}))).conntracks[7].entries
    assert back.tobytes() == entries.tobytes()
    assert not back.flags.writeable


def test_the_text_is_ascii_json_with_the_schema() -> None:
    whole = json.loads(to_json(hostile_host()).decode("ascii"))
    assert whole["schema"] == serialize.SCHEMA
    assert set(whole["snapshot"]) == {field.name for field in dataclasses.fields(Snapshot)}


PACKED = pack(RICH)
PLAIN: dict[str, Any] = json.loads(to_json(RICH))


@given(st.integers(0, len(PACKED) - 1))
def test_truncated(length: int) -> None:
    with pytest.raises(CorruptFile):
        unpack(PACKED[:length])


@given(st.integers(0, len(to_json(RICH)) - 1))
def test_truncated_plain(length: int) -> None:
    with pytest.raises(CorruptFile):
        unpack(to_json(RICH)[:length])


@settings(max_examples=200)
@given(st.integers(10, len(PACKED) - 1), st.integers(0, 7))
def test_a_flipped_bit_under_gzip(place: int, bit: int) -> None:
    broken = bytearray(PACKED)
    broken[place] ^= 1 << bit
    # Some bits of a deflate stream are unused (padding, unused codes): the content is identical.
    with suppress(zlib.error):
        if zlib.decompress(broken, zlib.MAX_WBITS | 16) == to_json(RICH):
            assert to_json(unpack(bytes(broken))) == to_json(RICH)
            return
    with pytest.raises(CorruptFile) as caught:
        unpack(bytes(broken))
    assert caught.value.try_


@settings(max_examples=300)
@given(st.integers(0, len(to_json(RICH)) - 1), st.integers(0, 255))
def test_a_changed_byte_of_plain_json_reads_or_is_refused(place: int, byte: int) -> None:
    broken = bytearray(to_json(RICH))
    broken[place] = byte
    try:
        assert isinstance(unpack(bytes(broken)), Snapshot)
    except CorruptFile as error:
        assert str(error)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(CorruptFile):
        unpack(data)


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return an uncompressed dump with a change."""
    whole = copy.deepcopy(PLAIN)
    change(whole)
    return json.dumps(whole).encode()


def net(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the host's NetState in a dump."""
    return whole["snapshot"]["nets"][str(HOST)]


def entries(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of the host's conntrack table in a dump."""
    return whole["snapshot"]["conntracks"][str(HOST)]["entries"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.update(schema=True), "schema"),
        (lambda d: d.update(schema="1"), "schema"),
        (lambda d: d.pop("schema"), ""),
        (lambda d: d.pop("snapshot"), ""),
        (lambda d: d["snapshot"].pop("taken_at"), "snapshot"),
        (lambda d: d["snapshot"].update(more=1), "snapshot"),
        (lambda d: d["snapshot"].update(taken_at="now"), "snapshot.taken_at"),
        (lambda d: d["snapshot"].update(nets=[]), "snapshot.nets"),
        (lambda d: d["snapshot"].update(pending="links"), "snapshot.pending"),
        (lambda d: net(d)["links"]["1"].update(mtu="1500"), f"snapshot.nets.{HOST}.links.1.mtu"),
        (lambda d: net(d)["links"]["1"].update(mtu=1.5), f"snapshot.nets.{HOST}.links.1.mtu"),
        (lambda d: net(d)["links"]["1"].update(mtu=True), f"snapshot.nets.{HOST}.links.1.mtu"),
        (lambda d: net(d)["links"]["1"].update(mtu=10**30), f"snapshot.nets.{HOST}.links.1.mtu"),
        (lambda d: net(d)["links"]["1"].update(addresses=[{}]), f"snapshot.nets.{HOST}.links.1.addresses[0]"),
        (lambda d: net(d)["links"]["1"].update(details={"x": []}), f"snapshot.nets.{HOST}.links.1.details.x"),
        (lambda d: net(d)["links"]["1"].update(ifindex=9), f"snapshot.nets.{HOST}.links"),
        (lambda d: net(d)["links"].update(one=net(d)["links"]["1"]), f"snapshot.nets.{HOST}.links.one"),
        (lambda d: net(d).update(ns=1), "snapshot.nets"),
        (
            lambda d: net(d)["links"]["1"]["addresses"][0].update(address="::g"),
            f"snapshot.nets.{HOST}.links.1.addresses",
        ),
        (lambda d: entries(d).pop("id"), f"snapshot.conntracks.{HOST}.entries"),
        (lambda d: entries(d)["id"].pop(), f"snapshot.conntracks.{HOST}.entries"),
        (lambda d: entries(d)["id"].__setitem__(0, "7"), f"snapshot.conntracks.{HOST}.entries.id"),
        (lambda d: entries(d)["id"].__setitem__(0, -1), f"snapshot.conntracks.{HOST}.entries.id"),
        (lambda d: entries(d)["id"].__setitem__(0, 2**32), f"snapshot.conntracks.{HOST}.entries.id"),
        (lambda d: entries(d)["id"].__setitem__(0, 1.5), f"snapshot.conntracks.{HOST}.entries.id"),
        (lambda d: entries(d)["bytes"].pop(), f"snapshot.conntracks.{HOST}.entries.bytes"),
        (lambda d: entries(d)["counted"].__setitem__(0, 1), f"snapshot.conntracks.{HOST}.entries.counted"),
        (lambda d: entries(d).update(orig_src="zz"), f"snapshot.conntracks.{HOST}.entries.orig_src"),
        (lambda d: entries(d).update(orig_src="00"), f"snapshot.conntracks.{HOST}.entries.orig_src"),
        (lambda d: entries(d).update(orig_src=[0]), f"snapshot.conntracks.{HOST}.entries.orig_src"),
        (lambda d: entries(d).update(id={}), f"snapshot.conntracks.{HOST}.entries.id"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_the_schema(change: Callable[[dict[str, Any]], Any], where: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        unpack(changed(change))
    assert caught.value.where == where
    assert caught.value.what and caught.value.try_ and not caught.value.try_.endswith(".")


def test_a_dump_from_before_a_field_opens_with_its_default() -> None:
    def older(whole: dict[str, Any]) -> None:
        for link in net(whole)["links"].values():
            if link["port"]:
                link["port"].pop("locked")
        whole["snapshot"].pop("ovs", None)

    assert_same(unpack(changed(older)), RICH)


def test_a_field_of_a_newer_version_is_reported() -> None:
    with pytest.raises(CorruptFile, match="a newer vnet-tui may have written it"):
        unpack(changed(lambda whole: net(whole).update(colour="red")))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"null", b"hello", b"\xff\xfe", b"{}", b"[" * 1_000_000, b'{"a":' * 100_000,
        b'{"schema": NaN, "snapshot": {}}', b'{"schema": 1e999, "snapshot": {}}',
        b'{"schema": ' + b"1" * 10_000 + b', "snapshot": {}}',
    ],
)  # fmt: skip
def test_other_files(text: bytes) -> None:
    with pytest.raises(CorruptFile):
        unpack(text)
    with pytest.raises(CorruptFile):
        unpack(gzip.compress(text))


def test_bytes_after_the_end() -> None:
    with pytest.raises(CorruptFile, match="after the end"):
        unpack(PACKED + b"x")
