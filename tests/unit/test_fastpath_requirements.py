"""Each missing requirement is named, with its effect and what to try."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bpf.btf import ModuleState
from bpf.build import KFUNCS
from bpf.requirements import HostFeatures, read_host_features, requirements, unmet

GOOD = HostFeatures("6.12.43-amd64")
ABSENT = ModuleState(present=False)
LOADABLE = ModuleState(present=False, loadable=True)
LOADED = ModuleState(present=True, loaded=True, has_types=True)


def missing(**different: Any) -> list[str]:
    """Return the unmet requirements of a good machine with these differences."""
    return [one.name for one in requirements(replace(GOOD, **different)) if not one.met]


def test_a_good_machine_meets_all_requirements() -> None:
    found = requirements(GOOD)
    assert all(one.met for one in found) and unmet(found) == ()
    assert len({one.name for one in found}) == len(found) >= 10


@pytest.mark.parametrize(
    ("different", "named"),
    [
        ({"capabilities": 0}, ["CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN"]),
        ({"capabilities": ~(1 << 13)}, ["CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN"]),
        ({"lockdown": "confidentiality"}, ["no kernel lockdown for confidentiality"]),
        ({"btf": "it cannot be read"}, ["the kernel's type information (BTF)"]),
        ({"members": "struct nf_conn has no member mark"}, ["the kernel's type information (BTF)"]),
        ({"functions": frozenset(KFUNCS[1:])}, [f"kernel function {KFUNCS[0]}"]),
        ({"functions": frozenset(KFUNCS[:-1])}, [f"kernel function {KFUNCS[-1]}"]),
        ({"conntrack": ABSENT}, ["conntrack"]),
        ({"has_bcc": False}, ["BCC"]),
        ({"has_headers": False}, ["headers of the C library"]),
    ],
)
def test_an_unmet_requirement_is_named_and_keeps_it_off(different: dict[str, Any], named: list[str]) -> None:
    assert missing(**different) == named
    lacking = unmet(requirements(replace(GOOD, **different)))
    assert [one.name for one in lacking] == named
    for one in lacking:
        assert one.found and one.try_ and "the kernel forwards everything" in one.follows


def test_without_tcx_clsact_is_used() -> None:
    found = requirements(replace(GOOD, tcx=False))
    (tcx,) = [one for one in found if not one.met]
    assert tcx.name == "tcx links" and "clsact" in tcx.follows and unmet(found) == ()
    by_name = {one.name: one for one in requirements(replace(GOOD, tcx=None))}
    assert not by_name["tcx links"].met and "unknown without" in by_name["tcx links"].found
    assert "root" in by_name["tcx links"].try_


def test_a_compiled_program_needs_no_compiler() -> None:
    assert missing(has_bcc=False, has_headers=False, compiled=True) == []


def test_lockdown_for_integrity_does_not_matter() -> None:
    assert missing(lockdown="integrity") == []


def functions(**different: Any) -> list[str]:
    """Return what was found about the kernel functions."""
    found = requirements(replace(GOOD, **different))
    return [one.found for one in found if one.name.startswith("kernel function")]


def test_functions_of_a_loaded_module_are_attributed_to_it() -> None:
    found = functions(conntrack=LOADED)
    assert len(found) == len(KFUNCS) and all("the module nf_conntrack has it" in message for message in found)


def test_a_module_loaded_at_start_is_named_and_not_missing() -> None:
    assert missing(conntrack=LOADABLE, functions=frozenset()) == []
    assert all(
        "once the module nf_conntrack is loaded" in message for message in functions(conntrack=LOADABLE)
    )


def test_a_module_without_types_is_reported_with_advice() -> None:
    """CONFIG_MODULE_ALLOW_BTF_MISMATCH loads a module and drops its type information."""
    found = requirements(
        replace(GOOD, functions=frozenset(), conntrack=ModuleState(present=True, loaded=True))
    )
    lacking = [one for one in found if not one.met]
    assert len(lacking) == len(KFUNCS)
    assert all("without type information" in one.found for one in lacking)
    assert all("CONFIG_DEBUG_INFO_BTF_MODULES" in one.try_ for one in lacking)


@pytest.mark.root
@pytest.mark.needs("fastpath")
def test_this_machine_meets_the_requirements() -> None:
    found = requirements(read_host_features(whole=True))
    assert unmet(found) == (), unmet(found)
