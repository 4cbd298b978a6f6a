"""Find kernel functions and members of structures in distributions' BTF.

tests/kernels/btf has parts of their type information, cut by tests/kernels/btf/cut.py, and what bpftool
reads from the whole of it.
"""

from __future__ import annotations

import json
import lzma
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bpf.btf import Btf, BtfError, read_btf
from bpf.build import KFUNC_BASE, KFUNCS, extract_program, offsets

FOLDER = Path(__file__).parents[1] / "kernels/btf"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
_CALL = struct.Struct("<BBhi")


@dataclass(frozen=True)
class Cut:
    """Hold a kernel's type information, as btf.py and bpftool read it."""

    btf: Btf
    base: Btf
    facts: dict[str, Any]


@pytest.fixture(params=NAMES)
def cut(request: pytest.FixtureRequest, tmp_path: Path) -> Cut:
    base, module = (
        lzma.decompress((FOLDER / f"{request.param}.{part}.xz").read_bytes())
        for part in ("vmlinux", "nf_conntrack")
    )
    (tmp_path / "vmlinux").write_bytes(base)
    facts = json.loads((FOLDER / f"{request.param}.json").read_text())
    return Cut(read_btf(tmp_path / "vmlinux", module), read_btf(tmp_path / "vmlinux"), facts)


def test_kernels_of_several_years_are_present() -> None:
    releases = {json.loads((FOLDER / f"{name}.json").read_text())["release"][:4] for name in NAMES}
    assert {"6.1.", "6.12"} <= releases and len(releases) >= 3


def test_ids_of_the_module_continue_after_the_kernels(cut: Cut) -> None:
    assert cut.btf.base_types == cut.facts["types"]
    for name in KFUNCS:
        found = cut.btf.function(name)
        assert found == cut.facts["functions"][name]
        assert cut.btf.is_of_module(found)
        assert cut.base.function(name) is None


def test_calls_refer_to_the_module(cut: Cut) -> None:
    code = b"".join(_CALL.pack(0x85, 0, 0, KFUNC_BASE + number) for number in range(len(KFUNCS)))
    made = extract_program(code, {}, cut.btf)
    assert made.calls_module
    expected = [(0x85, 0x20, 1, cut.facts["functions"][name]) for name in KFUNCS]
    assert list(_CALL.iter_unpack(made.code)) == expected
    with pytest.raises(BtfError, match="no function bpf_skb_ct_lookup"):
        extract_program(code, {}, cut.base)


def test_members_are_where_bpftool_finds_them(cut: Cut) -> None:
    at, sizes, extensions = (cut.facts[name] for name in ("offsets", "sizes", "extensions"))
    found = offsets(cut.btf)
    assert found == {
        "NF_CONN_STATUS": at["nf_conn status"],
        "NF_CONN_MARK": at["nf_conn mark"],
        "NF_CONN_TUPLEHASH": at["nf_conn tuplehash"],
        "NF_CONN_EXT": at["nf_conn ext"],
        "NF_CONN_TCP_STATE": at["nf_conn proto.tcp.state"],
        "NF_CONN_TCP_FLAGS": at["nf_conn proto.tcp.seen"] + at["ip_ct_tcp_state flags"],
        "TCP_SEEN_SIZE": sizes["ip_ct_tcp_state"],
        "NF_CT_EXT_HELPER": at["nf_ct_ext offset"] + extensions["NF_CT_EXT_HELPER"],
        "NF_CT_EXT_TIMEOUT": at["nf_ct_ext offset"] + extensions["NF_CT_EXT_TIMEOUT"],
        "TUPLE_HASH_SIZE": sizes["nf_conntrack_tuple_hash"],
        "TUPLE_HASH_TUPLE": at["nf_conntrack_tuple_hash tuple"],
        "TUPLE_SRC": at["nf_conntrack_tuple src.u3"],
        "TUPLE_SPORT": at["nf_conntrack_tuple src.u.all"],
        "TUPLE_DST": at["nf_conntrack_tuple dst.u3"],
        "TUPLE_DPORT": at["nf_conntrack_tuple dst.u.all"],
    }
    assert -1 not in at.values()


def test_the_flag_for_ipv6_checksums_is_found(cut: Cut) -> None:
    """All of these kernels accept the flag for checksums of IPv6 packets."""
    assert "BPF_F_IPV6" in cut.btf.enumerators


def test_a_damaged_module_is_named(cut: Cut, tmp_path: Path) -> None:
    with pytest.raises(BtfError):
        read_btf(tmp_path / "vmlinux", b"nothing of the kind, but long enough for a header")
