"""A change of Docker networks is killed at different calls: recovery leaves no difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.docker.person import Person, differences, furnished
from tests.support.killing import COUNTED, KILL_AT

pytestmark = pytest.mark.root

_KILLS = 5  # calls of each change, evenly distributed
CHANGES = (
    ("network", "create", "shop", "--engine", "docker"),
    ("network", "rm", "app"),
    ("attach", "plain", "app"),
    ("detach", "front", "app"),
    ("move", "front", "app", "auto2"),
)


@pytest.fixture
def person(docker_host: DockerHost, tmp_path: Path) -> Person:
    docker_host.run("network", "create", "auto2")
    return furnished(docker_host, tmp_path / "state")


@pytest.mark.parametrize("words", CHANGES, ids=" ".join)
@pytest.mark.parametrize("killed", ["change", "undo"])
def test_a_killed_change_or_undo_leaves_nothing(
    person: Person, tmp_path: Path, words: tuple[str, ...], killed: str
) -> None:
    before, calls = person.inspects(), tmp_path / "calls"
    assert person.tries(*words, **{COUNTED: str(calls)}).returncode == 0
    if killed == "undo":
        assert person.tries("undo", **{COUNTED: str(calls)}).returncode == 0
    else:
        person.types("undo")
    assert differences(before, person.inspects()) == []
    total = int(calls.read_text())
    for number in range(_KILLS):
        at = 1 + number * (total - 1) // (_KILLS - 1)
        if killed == "undo":
            person.types(*words)
        ended = person.tries(*(words if killed == "change" else ["undo"]), **{KILL_AT: str(at)})
        assert ended.returncode == -9, f"call {at} of {total}: {ended.stderr}"
        person.types("recover")
        if differences(before, person.inspects()):
            person.types("undo")  # the change was complete, or its undo hadn't begun
        assert differences(before, person.inspects()) == [], f"call {at} of {total}"
