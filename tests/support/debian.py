"""Download packages of any Debian suite and unpack them into a cache.

The cache is outside the repository. apt gets its own lists, state and sources for this, so the machine's apt
is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.pgp"
_FRESH = 7 * 86400  # seconds after which the mirror is asked for newer packages


class CannotFetch(Exception):
    """Say why a package can't be downloaded or unpacked."""


def cache(name: str) -> Path:
    """Return the folder for everything of one purpose that is kept between runs."""
    usual = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "vnet-tui" / name


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other run uses the cache in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run of these tests to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Apt:
    """Run apt with its own configuration and state in `folder`."""

    def __init__(self, folder: Path, *suites: str) -> None:
        self._folder = folder
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        mirror, keyring = _mirror()
        sources = [f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in suites]
        (folder / "sources.list").write_text("".join(sources))
        (folder / "apt.conf").write_text(
            f'Dir::State "{folder}"; Dir::State::Lists "{folder}/lists";\n'
            f'Dir::State::status "{folder}/status";\n'
            f'Dir::Cache "{folder}"; Dir::Cache::Archives "{folder}/archives";\n'
            f'Dir::Etc::SourceList "{folder}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
            'APT::Sandbox::User "root"; Acquire::Retries "3";\n'
        )

    def run(self, *words: str, folder: Path | None = None) -> str:
        """Run one of apt's commands."""
        return run(list(words), folder, APT_CONFIG=str(self._folder / "apt.conf"))

    def update(self) -> None:
        """Ask the mirror for its packages.

        Fails if a suite is missing or its signature is wrong.
        """
        self.run("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")


# Says which packages to fetch, once apt knows what there is. Raises CannotFetch.
Choose = Callable[[Apt], list[str]]


def unpacked(folder: Path, suites: Sequence[str], choose: Choose, finish: Callable[[Path], None]) -> Path:
    """Unpack packages of these suites in `folder`/root.

    They come from the cache if the mirror was asked within a week; `finish` completes what was unpacked.
    Raises CannotFetch.
    """
    root, asked = folder / "root", folder / "asked"
    found = root.exists() and asked.exists()
    if found and time.time() - asked.stat().st_mtime < _FRESH:
        return root
    try:
        apt = Apt(folder / "apt", *suites)
        apt.update()
        packages = choose(apt)
        if not found or packages != asked.read_text().split():
            _fetch(folder, apt, packages, finish)
        asked.write_text("\n".join(packages))
    except CannotFetch as error:
        if not found:
            raise
        print(f"{folder.name}: {error}; going on with what is in {root}", flush=True)
    return root


def _fetch(folder: Path, apt: Apt, packages: list[str], finish: Callable[[Path], None]) -> None:
    """Download these packages, and replace the unpacked ones."""
    print(f"{folder.name}: downloading {' '.join(packages)}", flush=True)
    new, root = folder / "new", folder / "root"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    apt.run("apt-get", "-q", "download", *packages, folder=new)
    for package in new.glob("*.deb"):
        run(["dpkg", "-x", str(package), str(new)])
        package.unlink()
    finish(new)
    shutil.rmtree(root, ignore_errors=True)
    new.rename(root)


def _mirror() -> tuple[str, str]:
    """Return this machine's Debian mirror and its keyring, whichever format they have."""
    form = "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)|$(SIGNED_BY)"
    for line in run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines():
        origin, component, release, address, keyring = line.split("|")
        if origin == "Debian" and component == "main" and not release.endswith("-security"):
            return address, keyring if keyring.startswith("/") else _KEYRING
    return "http://deb.debian.org/debian", _KEYRING


def run(words: list[str], folder: Path | None = None, **environment: str) -> str:
    """Return the output of a command; raises CannotFetch."""
    try:
        done = subprocess.run(
            words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise CannotFetch(f"can't run {words[0]}: {error.strerror}. Try: Debian or Ubuntu") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CannotFetch(f"{words[0]} {words[-1]} failed: {said[-1] if said else done.returncode}")
    return done.stdout
