"""Find a process's SSH session in its own environment or a parent's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.tools import PACKAGES

FIND = "from core.collect.processes import remote_session; print(remote_session())"
CLIENT = "192.0.2.7 50000 192.0.2.1 22"
SHELL = ["sh", "-c", '"$@"; exit $?', "sh"]  # stays the parent of its commands
# The test's own parents may belong to a session.
OWN_PIDS = ["unshare", "--pid", "--fork", "--mount-proc"]


def environment(variables: dict[str, str]) -> list[str]:
    return ["env", "-i", f"PYTHONPATH={PACKAGES}", *(f"{name}={value}" for name, value in variables.items())]


@pytest.mark.root
@pytest.mark.parametrize(
    ("own", "parent", "address"),
    [
        ({}, {}, ""),
        ({"SSH_CONNECTION": CLIENT}, {}, "192.0.2.7"),
        ({"SSH_CLIENT": "fe80::7%eth0 50000 22"}, {}, "fe80::7"),
        ({"SSH_CONNECTION": "UNKNOWN 1 2", "SSH_CLIENT": CLIENT}, {}, "192.0.2.7"),
        ({"SSH_CONNECTION": "UNKNOWN 1 2"}, {}, ""),
        ({}, {"SSH_CONNECTION": "2001:db8::7 50000 2001:db8::1 22"}, "2001:db8::7"),
        ({"SSH_CONNECTION": CLIENT}, {"SSH_CONNECTION": "192.0.2.8 1 192.0.2.1 22"}, "192.0.2.7"),
    ],
)
def test_the_client_is_found(own: dict[str, str], parent: dict[str, str], address: str) -> None:
    program = [*environment(own), sys.executable, "-c", FIND]
    words = [*OWN_PIDS, *SHELL, *environment(parent), *SHELL, *program]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"{address}\n"
