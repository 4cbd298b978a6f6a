"""Check each fault of the demo lab with real packets: it breaks its probe, its undo repairs it."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from core.lab import Lab, LabError, LabSettings
from core.lab.faults import FAULTS, HOST, Fault
from tests.support.lab_probe import PLACES, lab_state, reaches, run_in_lab
from tests.support.machine import PROGRAM
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

_LABS = 6  # probes that fail wait: several labs wait at the same time
_FAILS_WITHIN = 0.7  # seconds; shorter than TCP's first retransmission
_LACKING = re.compile(r"not supported|No such file or directory")  # a feature or module of the kernel
QUIET = LabSettings(traffic=False, healthy=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened with one fault; `lacking` is the kernel's refusal."""

    before: bool = False
    during: bool = False
    after: bool = False
    left: tuple[str, ...] = ()
    lacking: str = ""


def try_fault(labs: queue.Queue[tuple[Lab, dict[str, list[str]]]], fault: Fault) -> Outcome:
    """Inject a fault into a free lab and undo it, with a probe before, during and after."""
    lab, healthy = labs.get()
    try:
        before = eventually(lambda: reaches(lab, fault.probe))
        try:
            lab.inject(fault.name)
        except LabError as error:
            if _LACKING.search(error.reason):
                return Outcome(lacking=error.reason)
            raise
        during = reaches(lab, fault.probe, _FAILS_WITHIN)
        lab.undo_fault(fault.name)
        after = eventually(lambda: reaches(lab, fault.probe))
        return Outcome(before, during, after, differences(healthy, lab_state(lab, places_of(fault))))
    finally:
        labs.put((lab, healthy))


def places_of(fault: Fault) -> list[str]:
    """Return the namespaces that a fault changes: the host's, and those that its steps name."""
    words = set(" ".join(fault.steps).split())
    return [place for place in PLACES if place == HOST or place in words]


def differences(state: dict[str, list[str]], other: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the lines of `other` that a state doesn't have, and the other way round."""
    return tuple(
        f"{name}: {line}"
        for name in other
        for line in sorted({*state[name]} ^ {*other[name]})
        or (["repeated"] if state[name] != other[name] else [])
    )


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """Try the faults of all selected tests at once, in several labs."""
    chosen = [
        item.callspec.params.get("fault")
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    ]
    names = [name for name in FAULTS if name in chosen]
    labs: queue.Queue[tuple[Lab, dict[str, list[str]]]] = queue.Queue()
    running = [Lab(QUIET) for _ in range(min(_LABS, len(names)))]
    with ThreadPoolExecutor(_LABS) as pool:
        try:
            for lab in running:
                lab.start()
                labs.put((lab, lab_state(lab)))
            yield {name: pool.submit(try_fault, labs, FAULTS[name]) for name in names}
        finally:
            pool.shutdown(cancel_futures=True)
            for lab in running:
                lab.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_breaks_its_probe_and_is_undone(fault: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[fault].result()
    if outcome.lacking:
        pytest.skip(f"this kernel can't: {outcome.lacking}")
    assert outcome.before, "the healthy lab answers"
    assert not outcome.during, "the fault breaks it"
    assert outcome.after, "the undo repairs it"
    assert outcome.left == (), "the undo leaves nothing"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(QUIET) as lab:
        yield lab


def sysctl(lab: Lab, name: str) -> str:
    return run_in_lab(lab, "sysctl", "-n", name)[1].strip()


@pytest.fixture
def broken() -> Iterator[Lab]:
    with Lab(replace(QUIET, faults=("raw-drop", "ip-forward-off"))) as lab:
        yield lab


def test_faults_are_combined_and_undone_one_by_one(broken: Lab) -> None:
    lab, published = broken, FAULTS["raw-drop"].probe
    assert sysctl(lab, "net.ipv4.ip_forward") == "0" and not reaches(lab, published, _FAILS_WITHIN)
    lab.undo_fault("ip-forward-off")
    assert sysctl(lab, "net.ipv4.ip_forward") == "1" and not reaches(lab, published, _FAILS_WITHIN)
    lab.undo_fault("raw-drop")
    assert eventually(lambda: reaches(lab, published))
    assert run_in_lab(lab, "nft", "list", "table", "ip", "lockdown")[0] != 0


def test_a_fault_that_was_repaired_meanwhile_is_undone_without_an_error(lab: Lab) -> None:
    lab.inject("host-no-default-route", "drop-silent")
    run_in_lab(lab, "ip", "route", "add", "default", "via", "192.0.2.1")
    _, rules = run_in_lab(lab, "nft", "-a", "list", "chain", "inet", "hostfw", "forward")
    handle = re.search(r"ip daddr 172.18.0.3 drop # handle (\d+)", rules)
    assert handle
    run_in_lab(lab, "nft", "delete", "rule", "inet", "hostfw", "forward", "handle", handle[1])
    lab.undo_fault("host-no-default-route", "drop-silent")
    assert eventually(lambda: reaches(lab, FAULTS["host-no-default-route"].probe))


def test_a_fault_that_fails_half_way_leaves_nothing(lab: Lab) -> None:
    before = lab_state(lab, [HOST])
    run_in_lab(lab, "ip", "rule", "add", "from", "172.18.0.2", "lookup", "200", "prio", "100")
    with pytest.raises(LabError, match=r"can't inject policy-rule in the demo lab: .*File exists"):
        lab.inject("policy-rule")
    assert differences(before, lab_state(lab, [HOST])) == ()


@pytest.mark.parametrize(
    ("verb", "name", "reason"),
    [
        ("undo_fault", "raw-drop", "isn't active"),
        ("inject", "frobnicate", "there is no fault with that name"),
    ],
)
def test_refused(lab: Lab, verb: str, name: str, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        getattr(lab, verb)(name)


def test_a_fault_is_injected_only_once(lab: Lab) -> None:
    lab.inject("ttl-1")
    with pytest.raises(LabError, match="the fault ttl-1 is active already"):
        lab.inject("ttl-1")
    lab.undo_fault("ttl-1")
    assert (
        run_in_lab(lab, "ip", "netns", "exec", "web1", "sysctl", "-n", "net.ipv4.ip_default_ttl")[1] == "64\n"
    )


def test_outside_of_a_lab_no_fault_is_injected() -> None:
    command = [sys.executable, "-P", "-m", "core.lab.inject", "inject", "ip-forward-off"]
    done = subprocess.run(
        ["unshare", "--net", *command], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "this is not a demo lab\n")


def test_a_healthy_lab_has_none_of_the_demos_faults(lab: Lab) -> None:
    links = {
        link["ifname"]: link["mtu"]
        for link in json.loads(run_in_lab(lab, "ip", "-j", "-n", "blog", "link")[1])
    }
    assert links["eth0"] == 1400
    assert run_in_lab(lab, "ip", "link", "show", "br-old")[0] != 0
    assert "audit" not in run_in_lab(lab, "nft", "list", "ruleset")[1]
    code, output = run_in_lab(lab, *PROGRAM, "show", "--json")
    assert code == 0
    assert [one for one in json.loads(output)["findings"] if one["severity"] != "info"] == []
    assert reaches(lab, FAULTS["egress-drop"].probe) and reaches(lab, FAULTS["dead-namespace"].probe)
