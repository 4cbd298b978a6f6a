"""The variables that root keeps from its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.tools import environment, root_owned_folder

pytestmark = pytest.mark.root

USER = 1234
_CLEANED = (
    "import json, os; from core.tools import clean_environment; clean_environment(); "
    "print(json.dumps(dict(os.environ)))"
)


def cleaned(**environment: str) -> dict[str, str]:
    """Return the cleaned environment."""
    words = [sys.executable, "-P", "-c", _CLEANED]
    given = {"PYTHONPATH": str(Path(__file__).parents[2])} | environment
    done = subprocess.run(words, env=given, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Return a folder of an unprivileged user."""
    folder = tmp_path / "users"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def test_variables_that_load_code_or_write_files_are_dropped(users: Path) -> None:
    names = (
        "PYTHONSTARTUP", "LD_LIBRARY_PATH", "BCC_KERNEL_SOURCE", "LLVM_PROFILE_FILE", "CPATH",
        "XTABLES_LIBDIR", "TEXTUAL_LOG", "TEXTUAL_DRIVER", "BASH_ENV", "XDG_STATE_HOME", "OPENSSL_CONF",
        "DOCKER_CONFIG", "MODPROBE_OPTIONS",
    )  # fmt: skip
    assert not cleaned(**dict.fromkeys(names, str(users))).keys() & {"PYTHONPATH", *names}


def test_the_users_settings_are_kept() -> None:
    given = {"VNET_ENGINES": "none", "DOCKER_HOST": "unix:///run/x", "TERM": "linux", "LC_ALL": "C"}
    assert given.items() <= cleaned(**given).items()


def test_the_folder_of_open_vswitch_is_kept_if_it_is_roots(users: Path, tmp_path: Path) -> None:
    assert "OVS_RUNDIR" not in cleaned(OVS_RUNDIR=str(users))
    assert cleaned(OVS_RUNDIR=str(tmp_path))["OVS_RUNDIR"] == str(tmp_path.resolve())


def test_path_keeps_only_folders_of_root(users: Path, tmp_path: Path) -> None:
    given = f"{users}:.::{tmp_path}:/nowhere:/usr/sbin:/tmp:/usr/bin"
    assert cleaned(PATH=given)["PATH"] == f"{tmp_path.resolve()}:/usr/sbin:/usr/bin:/sbin:/bin"
    assert cleaned(PATH=str(users))["PATH"] == "/usr/sbin:/usr/bin:/sbin:/bin"


def test_home_and_tmpdir_are_trusted_only_if_root_owns_them(users: Path, tmp_path: Path) -> None:
    assert cleaned(HOME=str(users), TMPDIR=str(users)).items() >= {"HOME": "/root"}.items()
    assert "TMPDIR" not in cleaned(TMPDIR=str(users))
    assert cleaned(HOME=str(tmp_path), TMPDIR="/tmp").items() >= {
        "HOME": str(tmp_path.resolve()), "TMPDIR": "/tmp"
    }.items()  # fmt: skip


def test_a_folder_is_roots_if_all_its_parents_are(users: Path, tmp_path: Path) -> None:
    assert root_owned_folder(str(tmp_path)) == str(tmp_path.resolve())
    assert root_owned_folder(str(users)) == ""
    below = users / "below"
    below.mkdir()
    assert root_owned_folder(str(below)) == "", "its user can put another in its place"
    (users / "link").symlink_to(tmp_path)
    assert root_owned_folder(str(users / "link")) == str(tmp_path.resolve()), "not by the link"


@pytest.mark.parametrize(
    ("mode", "roots", "shared"),
    [(0o755, True, True), (0o775, True, True), (0o777, False, False), (0o1777, False, True)],
)
def test_folders_that_other_users_can_write_to(tmp_path: Path, mode: int, roots: bool, shared: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    assert bool(root_owned_folder(str(folder))) == roots
    assert bool(root_owned_folder(str(folder), shared=True)) == shared
    os.chown(folder, 0, USER)
    assert bool(root_owned_folder(str(folder))) == (mode == 0o755), "another group than root's"


def test_tools_are_found_if_path_lacks_sbin() -> None:
    assert "/usr/sbin" in cleaned(PATH="/usr/bin:/bin")["PATH"].split(":")


def test_the_environment_is_copied_while_another_thread_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_KEPT", "yes")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(100):
                os.environ[f"VNET_PASSING_{number}"] = "x"
            for number in range(100):
                del os.environ[f"VNET_PASSING_{number}"]

    pause = sys.getswitchinterval()
    thread = threading.Thread(target=change)
    try:
        sys.setswitchinterval(1e-5)
        thread.start()
        copies = [environment(LC_ALL="C") for _ in range(2000)]
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(pause)
    assert all(copy["VNET_KEPT"] == "yes" and copy["LC_ALL"] == "C" for copy in copies)
