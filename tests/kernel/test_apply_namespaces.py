"""An operation creates a namespace like `ip netns add`, with its directory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from core.operations import CreateNamespace
from core.operations.executor import Executor

pytestmark = pytest.mark.root

_NAME = "made"


def by_operation() -> None:
    with Executor() as executor:
        CreateNamespace(_NAME).execute(executor)


def by_ip() -> None:
    subprocess.run(["ip", "netns", "add", _NAME], check=True)


def made(make: Callable[[], None], again: bool) -> object:
    """Return the state after `make` in a mount namespace with an empty /run.

    `again`: one namespace is there before. A child does it and reports the state.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _empty_run()
            if again:
                subprocess.run(["ip", "netns", "add", "earlier"], check=True)
            make()
            os.write(writing, json.dumps(_namespace_state()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as reader:
        return json.loads(reader.read())


def _empty_run() -> None:
    os.unshare(os.CLONE_NEWNS)
    for words in ("--make-rprivate /", "-t tmpfs tmpfs /run"):
        subprocess.run(["mount", *words.split()], check=True)


def _namespace_state() -> list[object]:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    ours = [
        [words[4], words[6].split(":")[0], words[words.index("-") + 1]]
        for words in mounts
        if words[4].startswith("/run/netns")
    ]
    paths = (Path("/run/netns"), Path("/run/netns", _NAME))
    links = subprocess.run(["ip", "-j", "-n", _NAME, "link"], check=True, capture_output=True).stdout
    names = sorted((link["ifname"], link["operstate"]) for link in json.loads(links))
    return [ours, [oct(path.stat().st_mode) for path in paths], names]


@pytest.mark.parametrize("again", [False, True])
def test_the_result_is_that_of_ip_netns(again: bool) -> None:
    found = made(by_operation, again)
    assert found
    assert found == made(by_ip, again)


def test_only_the_new_name_refers_to_it() -> None:
    before = Path("/proc/self/ns/net").stat().st_ino
    name = f"vt{os.getpid()}new"
    with Executor() as executor:
        CreateNamespace(name).execute(executor)
        try:
            assert Path("/run/netns", name).stat().st_ino != before
            assert Path("/proc/self/ns/net").stat().st_ino == before
            with pytest.raises(FileExistsError):
                CreateNamespace(name).execute(executor)
        finally:
            subprocess.run(["ip", "netns", "del", name], check=True)
