"""Each requirement of the fast path is named where it is missing, with what follows and what to try."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bpf.artifact import KFUNCS
from bpf.requirements import Facts, facts_of_this_machine, requirements, unmet, version_of

GOOD = Facts("6.12.43-amd64")


def missing(**different: Any) -> list[str]:
    """What is not met where these facts differ from those of a good machine."""
    return [one.name for one in requirements(replace(GOOD, **different)) if not one.met]


def test_nothing_is_missing_on_a_good_machine() -> None:
    found = requirements(GOOD)
    assert all(one.met for one in found) and unmet(found) == ()
    assert len({one.name for one in found}) == len(found) >= 12


@pytest.mark.parametrize(
    ("different", "named"),
    [
        ({"release": "5.15.0-91-generic"}, ["Linux 6.0 or newer"]),
        ({"release": "5.10.0"}, ["Linux 6.0 or newer", "nftables tables with an owner"]),
        ({"capabilities": 0}, ["CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN"]),
        ({"capabilities": ~(1 << 13)}, ["CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN"]),
        ({"lockdown": "confidentiality"}, ["no kernel lockdown for confidentiality"]),
        ({"btf": "it cannot be read"}, ["the kernel's type information (BTF)"]),
        ({"members": "struct nf_conn has no member mark"}, ["the kernel's type information (BTF)"]),
        ({"functions": frozenset(KFUNCS[1:])}, [f"kernel function {KFUNCS[0]}"]),
        ({"functions": frozenset(KFUNCS[:-1])}, [f"kernel function {KFUNCS[-1]}"]),
        ({"has_conntrack": False}, ["conntrack"]),
        ({"has_bcc": False}, ["BCC"]),
        ({"has_headers": False}, ["headers of the C library"]),
    ],
)
def test_what_is_missing_keeps_it_off_and_is_named(different: dict[str, Any], named: list[str]) -> None:
    assert missing(**different) == named
    lacking = unmet(requirements(replace(GOOD, **different)))
    assert [one.name for one in lacking] == named
    for one in lacking:
        assert one.found and one.try_ and "the kernel forwards everything" in one.follows


def test_without_tcx_another_way_is_taken() -> None:
    found = requirements(replace(GOOD, tcx=False))
    (tcx,) = [one for one in found if not one.met]
    assert tcx.name == "tcx links" and "clsact" in tcx.follows and unmet(found) == ()
    told = {one.name: one for one in requirements(replace(GOOD, tcx=None))}
    assert told["tcx links"].met and "version" in told["tcx links"].found
    assert not {one.name: one.met for one in requirements(Facts("6.1.0", tcx=None))}["tcx links"]


def test_a_compiled_program_needs_no_compiler() -> None:
    assert missing(has_bcc=False, has_headers=False, compiled=True) == []


def test_lockdown_for_integrity_does_not_matter() -> None:
    assert missing(lockdown="integrity") == []


def test_a_function_that_only_a_module_has_is_said_to_be_there() -> None:
    found = requirements(replace(GOOD, functions=frozenset(), in_module=True))
    told = [one.found for one in found if one.name.startswith("kernel function")]
    assert len(told) == len(KFUNCS) and all("module nf_conntrack" in words for words in told)


def test_versions() -> None:
    assert version_of("6.18.44-fc-v657") == (6, 18)
    assert version_of("6.6") == (6, 6) and version_of("6.1rc3") == (6, 1)
    assert version_of("") == version_of("x.y") == (0, 0)


@pytest.mark.root
@pytest.mark.needs("fastpath")
def test_this_machine_has_what_the_other_tests_need() -> None:
    found = requirements(facts_of_this_machine(whole=True))
    assert unmet(found) == (), unmet(found)
