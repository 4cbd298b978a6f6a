"""The settings of Docker attachments survive detach, move and undo."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docker.engine import DockerHost
from tests.docker.person import MAC, SYSCTLS, Person, differences, furnished
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def person(docker_host: DockerHost, tmp_path: Path) -> Person:
    return furnished(docker_host, tmp_path / "state")


def test_a_detachment_taken_back_leaves_all_as_docker_says(person: Person) -> None:
    ends = (("front", "app"), ("front", "auto"), ("api", "app"), ("plain", "bridge"), ("later", "app"))
    for end in ends:
        before = person.inspects()
        person.types("detach", *end)
        assert person.inspects() != before
        person.types("undo")
        assert differences(before, person.inspects()) == [], end


def test_the_names_of_a_detached_container_are_found_again(person: Person) -> None:
    wait_until(lambda: person.finds("www") and person.finds("frontend"), "the names")
    person.types("detach", "front", "app")
    assert not person.finds("www")
    text = person.types("undo", "--dry-run")
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
    assert ("--gw-priority 7" in text) == (person.engine.version >= (28, 0))
    person.types("undo")
    assert person.finds("www") and person.finds("frontend")
    assert person.finds("backend", asked_by="front")


def test_a_moved_container_keeps_its_names(person: Person) -> None:
    person.engine.run("network", "create", "other")
    person.engine.container("asks", "--network", "other")
    before = person.inspects()
    mac = person.end("front", "app")["MacAddress"]
    text = person.types("move", "front", "app", "other")
    assert "front loses the address chosen on app: 10.203.0.99, fd00:3::99" in text
    assert "links chosen on app: api:backend" in text
    assert person.finds("www", asked_by="asks") and person.finds("frontend", asked_by="asks")
    moved = person.end("front", "other")
    assert moved["MacAddress"] != mac
    assert moved.get("GwPriority", 0) == (7 if person.engine.version >= (28, 0) else 0)
    person.types("undo")
    assert differences(before, person.inspects()) == []


def test_a_mac_address_that_cannot_be_kept_is_named(person: Person) -> None:
    """Docker before 25 restores the one of the network that the container was created for."""
    lost = person.engine.version >= (25, 0)
    text = person.types("detach", "front", "auto", "--dry-run")
    assert ("another MAC address on auto" in text) == lost
    person.engine.run("network", "create", "other")
    text = person.types("move", "front", "auto", "other")
    assert f"front loses the MAC address chosen on auto: {MAC}" in text
    assert "face" in person.end("front", "other")["Aliases"]
    person.types("undo")
    assert (person.end("front", "auto")["MacAddress"] == MAC) != lost


def test_where_docker_has_no_dns_the_lost_names_are_said(person: Person) -> None:
    before = person.inspects()
    text = person.types("move", "front", "app", "bridge")
    assert "front loses its DNS names on bridge, where Docker has no DNS: www, frontend" in text
    person.types("undo")
    assert differences(before, person.inspects()) == []


def test_a_removed_network_comes_back_as_it_was(person: Person) -> None:
    before = person.inspects()
    person.types("network", "rm", "app")
    assert "app Name" not in person.inspects()
    person.types("undo")
    assert differences(before, person.inspects()) == []
    assert person.finds("www")


def test_what_is_made_and_taken_back_leaves_nothing(person: Person) -> None:
    before = person.inspects()
    for words in (
        ("attach", "plain", "app"),
        ("attach", "later", "auto"),
        ("network", "create", "shop", "--engine", "docker"),
        ("publish", "plain", "7080:80"),
        ("network", "create", "ours"),
        ("container", "create", f"n{person.engine.host.prefix}"),
    ):
        person.types(*words)
        person.types("undo")
        assert differences(before, person.inspects()) == [], words


def test_an_address_comes_back_although_docker_would_choose_another(person: Person) -> None:
    """Docker assigns the lowest free address. Restored without need, it isn't a fixed address."""
    for name in ("low", "high"):
        person.engine.container(name, "--network", "app")
    at = person.end("high", "app")["IPAddress"]
    person.types("detach", "high", "app")
    person.engine.run("rm", "-f", "low")
    person.types("undo")
    assert person.end("high", "app")["IPAddress"] == at
    # Another container has the address meanwhile: Docker assigns a different one.
    person.types("detach", "high", "app")
    person.engine.container("quick", "--network", "app", "--ip", at)
    person.types("undo")
    assert person.end("high", "app")["IPAddress"] != at
