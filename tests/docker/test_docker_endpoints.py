"""The settings of Docker attachments survive detach, move and undo."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.docker_user import MAC, SYSCTLS, DockerUser, create_networks, differences
from tests.docker.engine import DockerHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def user(docker_host: DockerHost, tmp_path: Path) -> DockerUser:
    return create_networks(docker_host, tmp_path / "state")


def test_an_undone_detachment_restores_what_docker_reports(user: DockerUser) -> None:
    ends = (("front", "app"), ("front", "auto"), ("api", "app"), ("plain", "bridge"), ("later", "app"))
    for end in ends:
        before = user.inspects()
        user.types("detach", *end)
        assert user.inspects() != before
        user.types("undo")
        assert differences(before, user.inspects()) == [], end


def test_names_of_a_detached_container_are_restored(user: DockerUser) -> None:
    wait_until(lambda: user.finds("www") and user.finds("frontend"), "the names")
    user.types("detach", "front", "app")
    assert not user.finds("www")
    text = user.types("undo", "--dry-run")
    for part in (
        "www",
        "frontend",
        "10.203.0.99",
        "fd00:3::99",
        "169.254.9.9",
        "api:backend",
        SYSCTLS[:20],
    ):
        assert part in text, text
    assert ("--gw-priority 7" in text) == (user.engine.version >= (28, 0))
    user.types("undo")
    assert user.finds("www") and user.finds("frontend")
    assert user.finds("backend", asked_by="front")


def test_a_moved_container_keeps_its_names(user: DockerUser) -> None:
    user.engine.run("network", "create", "other")
    user.engine.container("asks", "--network", "other")
    before = user.inspects()
    mac = user.end("front", "app")["MacAddress"]
    text = user.types("move", "front", "app", "other")
    assert "front loses the address chosen on app: 10.203.0.99, fd00:3::99" in text
    assert "links chosen on app: api:backend" in text
    assert user.finds("www", asked_by="asks") and user.finds("frontend", asked_by="asks")
    moved = user.end("front", "other")
    assert moved["MacAddress"] != mac
    assert moved.get("GwPriority", 0) == (7 if user.engine.version >= (28, 0) else 0)
    user.types("undo")
    assert differences(before, user.inspects()) == []


def test_a_mac_address_that_cannot_be_kept_is_named(user: DockerUser) -> None:
    """Docker before 25 restores the one of the container's first network."""
    lost = user.engine.version >= (25, 0)
    text = user.types("detach", "front", "auto", "--dry-run")
    assert ("another MAC address on auto" in text) == lost
    user.engine.run("network", "create", "other")
    text = user.types("move", "front", "auto", "other")
    assert f"front loses the MAC address chosen on auto: {MAC}" in text
    assert "face" in user.end("front", "other")["Aliases"]
    user.types("undo")
    assert (user.end("front", "auto")["MacAddress"] == MAC) != lost


def test_names_lost_without_dockers_dns_are_reported(user: DockerUser) -> None:
    before = user.inspects()
    text = user.types("move", "front", "app", "bridge")
    assert "front loses its DNS names on bridge, where Docker has no DNS: www, frontend" in text
    user.types("undo")
    assert differences(before, user.inspects()) == []


def test_a_removed_network_is_restored(user: DockerUser) -> None:
    before = user.inspects()
    user.types("network", "rm", "app")
    assert "app Name" not in user.inspects()
    user.types("undo")
    assert differences(before, user.inspects()) == []
    assert user.finds("www")


def test_an_undone_creation_leaves_nothing(user: DockerUser) -> None:
    before = user.inspects()
    for words in (
        ("attach", "plain", "app"),
        ("attach", "later", "auto"),
        ("network", "create", "shop", "--engine", "docker"),
        ("publish", "plain", "7080:80"),
        ("network", "create", "ours"),
        ("container", "create", f"n{user.engine.host.prefix}"),
    ):
        user.types(*words)
        user.types("undo")
        assert differences(before, user.inspects()) == [], words


def test_an_address_is_restored_although_docker_would_choose_another(user: DockerUser) -> None:
    """Docker assigns the lowest free address.

    Restored without need, it isn't a fixed address.
    """
    for name in ("low", "high"):
        user.engine.container(name, "--network", "app")
    at = user.end("high", "app")["IPAddress"]
    user.types("detach", "high", "app")
    user.engine.run("rm", "-f", "low")
    user.types("undo")
    assert user.end("high", "app")["IPAddress"] == at
    # Another container has the address meanwhile: Docker assigns a different one.
    user.types("detach", "high", "app")
    user.engine.container("quick", "--network", "app", "--ip", at)
    user.types("undo")
    assert user.end("high", "app")["IPAddress"] != at
