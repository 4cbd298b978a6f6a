"""The set-up script on a distribution of stand-ins: what it installs, and that a second run does nothing."""

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
# Each says that it was called; the package manager's list holds what the test wrote into `installed`.
STAND_INS = {
    "apt-get": 'echo "apt-get $*" >>"$CALLS"; [[ $1 != install ]] || printf "%s\\n" "$@" >>"$INSTALLED"',
    "apt-cache": '[[ " $ABSENT " == *" $2 "* ]] || echo "$2 | 1.0 | somewhere"',
    "sudo": '[[ $1 != -n ]] || exit "$SUDO"; echo "sudo $*" >>"$CALLS"; "$@"',
    "dpkg-query": 'grep -qx "${@: -1}" "$INSTALLED" && printf installed',
    "python": 'echo "python $*" >>"$CALLS"; [[ $1 != -V ]] || echo "Python $VERSION"\n'
    'if [[ $2 == venv ]]; then mkdir -p .venv/bin; cp "$(dirname "$0")/"{pip,python} .venv/bin; fi',
    "pip": 'echo "pip $*" >>"$CALLS"',
}


class Place:
    """A copy of what the script needs, and a PATH on which its tools are stand-ins."""

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
        self.sudo = 0  # what `sudo -n true` ends with

    def run(self, what: str, check: bool = True, before: tuple[str, ...] = ()) -> tuple[list[str], str]:
        """Run the script: the tools that it called, and what it said."""
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
        """Make it a checkout of a user's."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, USER, USER)


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        yield Place(Path(folder))


def test_what_is_missing_is_installed_and_named(place: Place) -> None:
    calls, said = place.run("run")
    (line,) = [call for call in calls if call.startswith("apt-get install")]
    assert {"python3-bpfcc", "python3-venv", "nftables", "conntrack"} <= set(line.split())
    assert "python3" not in line.split(), "it is there already"
    assert "installing python3-venv" in said
    assert any(call.startswith("python -m venv --system-site-packages") for call in calls)
    assert any("--require-hashes" in call and "requirements-run.lock" in call for call in calls)


def test_what_the_distribution_does_not_have_is_left_out_in_words(place: Place) -> None:
    place.absent = "docker-cli"
    calls, said = place.run("dev")
    assert "there is no package docker-cli here" in said
    lines = [call.split() for call in calls if call.startswith("apt-get install")]
    assert any("docker.io" in line for line in lines)
    assert not any("docker-cli" in line for line in lines)


def test_a_second_run_does_nothing(place: Place) -> None:
    place.run("run")
    assert place.run("run") == ([], "")


def test_what_the_tests_need_is_enough_to_run(place: Place) -> None:
    place.run("dev")
    assert place.run("dev") == ([], "")
    assert place.run("run") == ([], "")


def test_what_running_needs_is_not_enough_for_the_tests(place: Place) -> None:
    place.run("run")
    calls, _ = place.run("dev")
    assert any("requirements-dev.lock" in call for call in calls)
    assert any(call.startswith("apt-get install") and "tcpdump" in call for call in calls)


def test_what_virtual_machines_need_is_installed_without_an_environment(place: Place) -> None:
    calls, _ = place.run("kernels")
    (line,) = [call for call in calls if call.startswith("apt-get install")]
    assert {"qemu-system-x86", "virtme-ng", "udev"} <= set(line.split())
    assert "python3-bpfcc" not in line.split()
    assert not any(call.startswith("python") for call in calls)
    assert place.run("kernels") == ([], "")


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements-run.lock", "the system's Python"])
def test_what_has_changed_is_set_up_anew(place: Place, changed: str) -> None:
    place.run("run")
    if changed.startswith("the"):
        place.version = "3.14.0"
    else:
        (place.folder / changed).write_text((place.folder / changed).read_text() + "\n")
    calls, _ = place.run("run")
    assert any(call.startswith("pip install") for call in calls)
    assert not any(call.startswith("apt-get") for call in calls), "the packages are there"


def test_an_installation_that_failed_is_tried_again(place: Place) -> None:
    pip = place.folder / "tools" / "pip"
    whole = pip.read_text()
    pip.write_text("#!/bin/bash\nexit 1\n")
    place.run("run", check=False)
    pip.write_text(whole)
    calls, _ = place.run("run")
    assert any(call.startswith("pip install") for call in calls)


@pytest.mark.root
def test_without_rights_sudo_installs_the_packages(place: Place) -> None:
    place.give_away()
    calls, _ = place.run("run", before=AS_NOBODY)
    through = [call.removeprefix("sudo ") for call in calls if call.startswith("sudo")]
    assert [words.split()[0] for words in through] == ["apt-get", "env"]
    assert not any("pip" in words for words in through), "the environment belongs to who asked for it"


@pytest.mark.root
def test_without_sudo_it_goes_on_and_names_what_needs_root(place: Place) -> None:
    place.sudo = 1
    place.give_away()
    place.installed.write_text("python3\npython3-venv\n")
    calls, said = place.run("dev", before=AS_NOBODY)
    assert "going on without python3-bpfcc" in said and said.count("Try: sudo make setup-dev") == 1
    assert not any(call.startswith("apt-get") for call in calls), "no network is needed for that"
    assert any("requirements-dev.lock" in call for call in calls)
    calls, said = place.run("dev", before=AS_NOBODY)
    assert not calls and said.startswith("vnet-tui set-up: going on without python3-bpfcc")
    calls, _ = place.run("dev")
    assert any(call.startswith("apt-get install") and "tcpdump" in call for call in calls), "root can"
    assert place.run("dev", before=AS_NOBODY) == ([], "")


@pytest.mark.root
def test_what_root_makes_belongs_to_the_checkouts_owner(place: Place) -> None:
    place.give_away()
    (place.folder / "tui/__pycache__").mkdir(parents=True)
    kept = place.folder / "incident.vnetrec"
    kept.write_text("a recording")
    place.run("dev")
    made = [*place.folder.glob(".venv/**/*"), place.folder / ".venv", place.folder / "tui/__pycache__"]
    assert len(made) > 4 and {path.lstat().st_uid for path in made} == {USER}
    assert kept.stat().st_uid == 0


@pytest.mark.root
def test_a_folder_that_may_not_be_written_is_named(place: Place) -> None:
    place.folder.chmod(0o755)
    calls, said = place.run("run", check=False, before=AS_NOBODY)
    assert not calls and "can't write .: it belongs to root. Try: sudo make setup" in said


@pytest.mark.parametrize("version", ["3.11.2", "3.9.0"])
def test_an_older_python_is_refused_before_anything_is_installed(place: Place, version: str) -> None:
    place.version = version
    calls, said = place.run("run", check=False)
    assert calls == []
    assert f"it is Python {version}, and 3.12 or newer is needed. Try: VNET_PYTHON=" in said.splitlines()[0]


@pytest.mark.parametrize("version", ["3.12.0", "3.13.0rc1", "4.0.0"])
def test_a_newer_python_is_taken(place: Place, version: str) -> None:
    place.version = version
    place.run("run")


def test_a_python_that_is_not_there_is_named(place: Place) -> None:
    (place.folder / "tools/python").unlink()
    calls, said = place.run("run", check=False)
    assert calls == [] and "python: No such file or directory. Try: " in said.splitlines()[0]


def test_bytecode_is_compiled(place: Place) -> None:
    calls, _ = place.run("run")
    assert "python -m compileall -q core bpf tui" in calls


def test_packages_that_cannot_be_had_end_it_in_words(place: Place) -> None:
    (place.folder / "tools/pip").write_text("#!/bin/bash\nexit 1\n")
    _, said = place.run("run", check=False)
    assert "can't install the Python packages: see above. Try: make setup" in said
