"""The environment in which root's programs run: cleaned at the start, and what our own Python processes get.

sudo(8) cleans most of it; `sudo -E`, make and a root shell do not. Only what is listed here is kept, so that
no variable makes us, a tool or a library load code from a folder that another user may write, or write there.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from fnmatch import fnmatch
from pathlib import Path

PACKAGES = Path(__file__).parents[1]  # the folder that holds `core`
_ROOT = 0
_USUAL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = (
    "VNET_*", "DOCKER_HOST", "CONTAINER_HOST",
    "USER", "LOGNAME", "SHELL", "PWD", "LANG", "LANGUAGE", "LC_*", "TZ", "SSH_*",
    "TERM", "COLORTERM", "TERM_PROGRAM*", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TMUX", "STY",
    "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "OPENBLAS_NUM_THREADS",
)  # fmt: skip


def clean() -> None:
    """Leave in the environment what root can rely on; other users keep theirs. Of PATH, HOME and TMPDIR the
    folders are kept where only root may write, TMPDIR also where it is one like /tmp."""
    if os.geteuid() != _ROOT:
        return
    given = dict(os.environ)
    kept = {name: text for name, text in given.items() if any(fnmatch(name, each) for each in _KEPT)}
    folders = [whole for each in given.get("PATH", "").split(":") if (whole := roots_folder(each))]
    # Tools such as nft lie in sbin, which a root shell by plain `su` lacks.
    kept["PATH"] = ":".join(dict.fromkeys([*folders, *_USUAL_PATH.split(":")]))
    kept["HOME"] = roots_folder(given.get("HOME", "")) or pwd.getpwuid(_ROOT).pw_dir
    if scratch := roots_folder(given.get("TMPDIR", ""), shared=True):
        kept["TMPDIR"] = scratch
    os.environ.clear()
    os.environ.update(kept)


def roots_folder(folder: str, shared: bool = False) -> str:
    """The folder without symlinks, where only root can change what lies in it or put another in its place; ""
    else. With `shared` others may add to it, as to /tmp, but not touch what is not theirs."""
    if not folder.startswith("/"):
        return ""
    try:
        whole = Path(folder).resolve(strict=True)
        # As root of a user namespace the machine's root is someone else, who has / all the same.
        owners = {_ROOT, Path("/").stat().st_uid}
        for each in (whole, *whole.parents):
            status = each.stat()
            sticky = status.st_mode & stat.S_ISVTX and (shared or each != whole)
            if status.st_uid not in owners or (_others_may_write(status) and not sticky):
                return ""
    except (OSError, RuntimeError):
        return ""
    return str(whole)


def _others_may_write(status: os.stat_result) -> bool:
    group = status.st_mode & stat.S_IWGRP and status.st_gid != _ROOT
    return bool(group or status.st_mode & stat.S_IWOTH)


def own_python(module: str, *arguments: str) -> list[str]:
    """The words that run a module of ours: with -P, or it would import from the current directory first."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_packages(**more: str) -> dict[str, str]:
    """Our environment with what `own_python` needs to find the module, and more variables."""
    return os.environ | {"PYTHONPATH": str(PACKAGES)} | more


# A list such as "docker,podman"; "none" for none of them. Engines: "docker", "podman", "ovs".
ENGINES = "VNET_ENGINES"


def is_wanted(engine: str) -> bool:
    """Whether that engine is to be looked at; without the variable, each is."""
    told = os.environ.get(ENGINES, "").strip()
    return not told or engine in (word.strip().lower() for word in told.split(","))
