"""Kill a change of Docker networks at different calls; recovery restores all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.docker_user import DockerUser, create_networks, differences
from tests.docker.engine import DockerHost
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
def user(docker_host: DockerHost, tmp_path: Path) -> DockerUser:
    docker_host.run("network", "create", "auto2")
    return create_networks(docker_host, tmp_path / "state")


@pytest.mark.parametrize("words", CHANGES, ids=" ".join)
@pytest.mark.parametrize("killed", ["change", "undo"])
def test_a_killed_change_or_undo_leaves_nothing(
    user: DockerUser, tmp_path: Path, words: tuple[str, ...], killed: str
) -> None:
    before, calls = user.inspects(), tmp_path / "calls"
    assert user.tries(*words, **{COUNTED: str(calls)}).returncode == 0
    if killed == "undo":
        assert user.tries("undo", **{COUNTED: str(calls)}).returncode == 0
    else:
        user.types("undo")
    assert differences(before, user.inspects()) == []
    total = int(calls.read_text())
    for number in range(_KILLS):
        at = 1 + number * (total - 1) // (_KILLS - 1)
        if killed == "undo":
            user.types(*words)
        ended = user.tries(*(words if killed == "change" else ["undo"]), **{KILL_AT: str(at)})
        assert ended.returncode == -9, f"call {at} of {total}: {ended.stderr}"
        user.types("recover")
        if differences(before, user.inspects()):
            user.types("undo")  # the change was complete, or its undo hadn't begun
        assert differences(before, user.inspects()) == [], f"call {at} of {total}"
