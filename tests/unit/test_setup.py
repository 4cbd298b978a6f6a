"""The set-up script with stand-ins for tools: what it installs, and when again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.needs import AS_NOBODY

ROOT = Path(__file__).parents[2]
USER = 65534  # AS_NOBODY's
# Each reports that it was called; the package manager's list holds what the test wrote into `installed`.
STAND_INS = {
    "apt-get": 'echo "apt-get $*" >>"$CALLS"; [[ $1 != install ]] || printf "%s\\n" "$@" >>"$INSTALLED"',
    "apt-cache": '[[ " $ABSENT " == *" $2 "* ]] || echo "$2 | 1.0 | somewhere"',
    "sudo": '[[ $1 != -n ]] || exit "$SUDO"; echo "sudo $*" >>"$CALLS"; "$@"',
    "dpkg-query": 'grep -qx "${@: -1}" "$INSTALLED" && printf installed',
    "python": 'echo "python $*" >>"$CALLS"; [[ $1 != -V ]] || echo "Python $VERSION"\n'
    'if [[ $2 == venv ]]; then mkdir -p .venv/bin; cp "$(dirname "$0")/"{pip,python} .venv/bin; fi',
    "pip": 'echo "pip $*" >>"$CALLS"',
}


class Checkout:
    """Hold a copy of what the script needs, and a PATH with stand-ins for its tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        (folder / "tools").mkdir()
        for name in ("pyproject.toml", "requirements-run.lock", "requirements-dev.lock", "scripts/setup.sh"):
            shutil.copy(ROOT / name, folder / name)
        for name, text in STAND_INS.items():
            tool = folder / "tools" / name
            tool.write_text(f"#!/bin/bash\n{text}\n")
            tool.chmod(0o755)
        self.calls, self.installed = folder / "calls", folder / "installed"
        self.installed.write_text("python3\n")
        self.version = "3.13.5"
        self.absent = ""
        self.sudo = 0  # the exit code of `sudo -n true`

    def run(self, what: str, check: bool = True, before: tuple[str, ...] = ()) -> tuple[list[str], str]:
        """Run the script; return the tools that it called, and its output."""
        self.calls.write_text("")
        self.calls.chmod(0o666)
        environment = {
            "PATH": f"{self.folder}/tools:/usr/bin:/bin", "VNET_PYTHON": f"{self.folder}/tools/python",
            "CALLS": str(self.calls), "INSTALLED": str(self.installed), "VERSION": self.version,
            "ABSENT": self.absent, "SUDO": str(self.sudo),
        }  # fmt: skip
        done = subprocess.run(
            [*before, str(self.folder / "scripts/setup.sh"), what], env=environment, check=False,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode == 0) is check, done.stderr
        calls = self.calls.read_text().splitlines()
        return [call for call in calls if call != "python -V"], done.stdout + done.stderr

    def give_away(self) -> None:
        """Make it a user's checkout."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, USER, USER)


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    with tempfile.TemporaryDirectory() as folder:
        yield Checkout(Path(folder))


def test_missing_packages_are_installed_and_named(checkout: Checkout) -> None:
    calls, output = checkout.run("run")
    (line,) = [call for call in calls if call.startswith("apt-get install")]
    assert {"python3-bpfcc", "python3-venv", "nftables", "conntrack"} <= set(line.split())
    assert "python3" not in line.split(), "it is there already"
    assert "installing python3-venv" in output
    assert any(call.startswith("python -m venv --system-site-packages") for call in calls)
    assert any("--require-hashes" in call and "requirements-run.lock" in call for call in calls)


def test_unavailable_packages_are_left_out_with_a_message(checkout: Checkout) -> None:
    checkout.absent = "docker-cli"
    calls, output = checkout.run("dev")
    assert "there is no package docker-cli here" in output
    lines = [call.split() for call in calls if call.startswith("apt-get install")]
    assert any("docker.io" in line for line in lines)
    assert not any("docker-cli" in line for line in lines)


def test_a_second_run_does_nothing(checkout: Checkout) -> None:
    checkout.run("run")
    assert checkout.run("run") == ([], "")


def test_the_set_up_for_tests_is_enough_to_run(checkout: Checkout) -> None:
    checkout.run("dev")
    assert checkout.run("dev") == ([], "")
    assert checkout.run("run") == ([], "")


def test_the_set_up_to_run_is_not_enough_for_tests(checkout: Checkout) -> None:
    checkout.run("run")
    calls, _ = checkout.run("dev")
    assert any("requirements-dev.lock" in call for call in calls)
    assert any(call.startswith("apt-get install") and "tcpdump" in call for call in calls)


def test_packages_for_virtual_machines_need_no_environment(checkout: Checkout) -> None:
    calls, _ = checkout.run("kernels")
    (line,) = [call for call in calls if call.startswith("apt-get install")]
    assert {"qemu-system-x86", "virtme-ng", "udev"} <= set(line.split())
    assert "python3-bpfcc" not in line.split()
    assert not any(call.startswith("python") for call in calls)
    assert checkout.run("kernels") == ([], "")


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements-run.lock", "the system's Python"])
def test_changed_files_cause_another_set_up(checkout: Checkout, changed: str) -> None:
    checkout.run("run")
    if changed.startswith("the"):
        checkout.version = "3.14.0"
    else:
        (checkout.folder / changed).write_text((checkout.folder / changed).read_text() + "\n")
    calls, _ = checkout.run("run")
    assert any(call.startswith("pip install") for call in calls)
    assert not any(call.startswith("apt-get") for call in calls), "the packages are there"


def test_an_installation_that_failed_is_tried_again(checkout: Checkout) -> None:
    pip = checkout.folder / "tools" / "pip"
    whole = pip.read_text()
    pip.write_text("#!/bin/bash\nexit 1\n")
    checkout.run("run", check=False)
    pip.write_text(whole)
    calls, _ = checkout.run("run")
    assert any(call.startswith("pip install") for call in calls)


@pytest.mark.root
def test_without_rights_sudo_installs_the_packages(checkout: Checkout) -> None:
    checkout.give_away()
    calls, _ = checkout.run("run", before=AS_NOBODY)
    through = [call.removeprefix("sudo ") for call in calls if call.startswith("sudo")]
    assert [command.split()[0] for command in through] == ["apt-get", "env"]
    assert not any("pip" in command for command in through), "the environment belongs to who asked for it"


@pytest.mark.root
def test_without_sudo_it_continues_and_names_what_needs_root(checkout: Checkout) -> None:
    checkout.sudo = 1
    checkout.give_away()
    checkout.installed.write_text("python3\npython3-venv\n")
    calls, output = checkout.run("dev", before=AS_NOBODY)
    assert "going on without python3-bpfcc" in output and output.count("Try: sudo make setup-dev") == 1
    assert not any(call.startswith("apt-get") for call in calls), "no network is needed for that"
    assert any("requirements-dev.lock" in call for call in calls)
    calls, output = checkout.run("dev", before=AS_NOBODY)
    assert not calls and output.startswith("vnet-tui set-up: going on without python3-bpfcc")
    calls, _ = checkout.run("dev")
    assert any(call.startswith("apt-get install") and "tcpdump" in call for call in calls), "root can"
    assert checkout.run("dev", before=AS_NOBODY) == ([], "")


@pytest.mark.root
def test_files_created_by_root_belong_to_the_checkouts_owner(checkout: Checkout) -> None:
    checkout.give_away()
    (checkout.folder / "tui/__pycache__").mkdir(parents=True)
    kept = checkout.folder / "incident.vnetrec"
    kept.write_text("a recording")
    checkout.run("dev")
    made = [
        *checkout.folder.glob(".venv/**/*"),
        checkout.folder / ".venv",
        checkout.folder / "tui/__pycache__",
    ]
    assert len(made) > 4 and {path.lstat().st_uid for path in made} == {USER}
    assert kept.stat().st_uid == 0


@pytest.mark.root
def test_a_folder_that_may_not_be_written_is_named(checkout: Checkout) -> None:
    checkout.folder.chmod(0o755)
    calls, output = checkout.run("run", check=False, before=AS_NOBODY)
    assert not calls and "can't write .: it belongs to root. Try: sudo make setup" in output


@pytest.mark.parametrize("version", ["3.11.2", "3.9.0"])
def test_an_older_python_is_refused_before_anything_is_installed(checkout: Checkout, version: str) -> None:
    checkout.version = version
    calls, output = checkout.run("run", check=False)
    assert calls == []
    assert f"it is Python {version}, and 3.12 or newer is needed. Try: VNET_PYTHON=" in output.splitlines()[0]


@pytest.mark.parametrize("version", ["3.12.0", "3.13.0rc1", "4.0.0"])
def test_a_newer_python_is_taken(checkout: Checkout, version: str) -> None:
    checkout.version = version
    checkout.run("run")


def test_a_missing_python_is_named(checkout: Checkout) -> None:
    (checkout.folder / "tools/python").unlink()
    calls, output = checkout.run("run", check=False)
    assert calls == [] and "python: No such file or directory. Try: " in output.splitlines()[0]


def test_bytecode_is_compiled(checkout: Checkout) -> None:
    calls, _ = checkout.run("run")
    assert "python -m compileall -q core bpf tui" in calls


def test_packages_that_are_not_available_end_it_with_a_message(checkout: Checkout) -> None:
    (checkout.folder / "tools/pip").write_text("#!/bin/bash\nexit 1\n")
    _, output = checkout.run("run", check=False)
    assert "can't install the Python packages: see above. Try: make setup" in output
