"""Debian's kernels, downloaded and unpacked into a cache outside the repository.

apt gets lists, state and sources of its own for this, so the machine's own apt is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITES = {"bookworm": "bookworm", "trixie": "trixie", "backports": "trixie-backports"}
_META = "linux-image-amd64"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.pgp"
_FRESH = 7 * 86400  # seconds after which the mirror is asked for a newer kernel


class CannotFetch(Exception):
    """A kernel can't be downloaded or unpacked; the text says why."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its name here, its release as `uname -r` prints it, its image, and the folder of
    the cache that it has for itself."""

    name: str
    release: str
    image: Path
    folder: Path


def cache() -> Path:
    """The folder that holds everything that is kept between runs."""
    usual = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "vnet-tui" / "kernels"


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other run uses the cache; virtual machines would only slow each other down."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run of these tests to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kernel(name: str) -> Kernel:
    """The newest kernel of a suite, from the cache if the mirror was asked within a week. Raises
    CannotFetch."""
    folder = cache() / name
    found = _unpacked(name, folder)
    asked = folder / "asked"
    if found and time.time() - asked.stat().st_mtime < _FRESH:
        return found
    try:
        packages = _Apt(folder / "apt", SUITES[name]).packages()
        if not found or packages != asked.read_text().split():
            found = _fetch(name, folder, packages)
        asked.write_text("\n".join(packages))
    except CannotFetch as error:
        if not found:
            raise
        print(f"{name}: {error}; going on with {found.release}, which is in {folder}", flush=True)
    return found


def _unpacked(name: str, folder: Path) -> Kernel | None:
    """The kernel in the cache; None where there is none."""
    root = folder / "root"
    for modules in sorted((root / "lib/modules").glob("*")):
        for image in (root / f"boot/vmlinuz-{modules.name}", modules / "vmlinuz"):
            if image.exists() and (folder / "asked").exists():
                return Kernel(name, modules.name, image, folder)
    return None


def _fetch(name: str, folder: Path, packages: list[str]) -> Kernel:
    """Download and unpack these packages in place of what is there."""
    print(f"{name}: downloading {' '.join(packages)}", flush=True)
    new, root = folder / "new", folder / "root"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    _Apt(folder / "apt", SUITES[name]).run("apt-get", "-q", "download", *packages, folder=new)
    for package in new.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(new)])
        package.unlink()
    if not (new / "lib").exists():
        (new / "lib").symlink_to("usr/lib")
    for modules in (new / "lib/modules").glob("*"):
        _run(["depmod", "-b", str(new), modules.name])
    shutil.rmtree(root, ignore_errors=True)
    new.rename(root)
    (folder / "asked").write_text("\n".join(packages))
    found = _unpacked(name, folder)
    if found is None:
        raise CannotFetch(f"{' '.join(packages)} hold no kernel that is known here: see {root}")
    return found


class _Apt:
    """apt with everything of its own in `folder`."""

    def __init__(self, folder: Path, suite: str) -> None:
        self._folder = folder
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        mirror, keyring = _mirror()
        (folder / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} {suite} main\n")
        (folder / "apt.conf").write_text(
            f'Dir::State "{folder}"; Dir::State::Lists "{folder}/lists";\n'
            f'Dir::State::status "{folder}/status";\n'
            f'Dir::Cache "{folder}"; Dir::Cache::Archives "{folder}/archives";\n'
            f'Dir::Etc::SourceList "{folder}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
            'APT::Sandbox::User "root"; Acquire::Retries "3";\n'
        )

    def run(self, *words: str, folder: Path | None = None) -> str:
        """Run one of apt's commands."""
        return _run(list(words), folder, APT_CONFIG=str(self._folder / "apt.conf"))

    def packages(self) -> list[str]:
        """The packages that make up the suite's newest kernel: the one that the meta package depends on, and
        where that is split, its parts of the same version."""
        self.run("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")
        (image,) = self._depends(_META, "linux-image-")[:1] or [""]
        if not image:
            raise CannotFetch(f"{_META} depends on no kernel")
        version = image.removeprefix("linux-image-")
        parts = [each for each in self._depends(image, "linux-") if each.endswith(version)]
        parts += [each for part in parts for each in self._depends(part, "linux-") if each.endswith(version)]
        return sorted({image, *parts})

    def _depends(self, package: str, start: str) -> list[str]:
        lines = self.run("apt-cache", "depends", package).splitlines()
        found = [line.partition("Depends: ")[2] for line in lines if line.strip().startswith("Depends: ")]
        return [each for each in found if each.startswith(start)]


def _mirror() -> tuple[str, str]:
    """The mirror that this machine gets Debian from, and its keyring; in whatever form its sources are."""
    form = "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)|$(SIGNED_BY)"
    for line in _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines():
        origin, component, release, address, keyring = line.split("|")
        if origin == "Debian" and component == "main" and not release.endswith("-security"):
            return address, keyring if keyring.startswith("/") else _KEYRING
    return "http://deb.debian.org/debian", _KEYRING


def _run(words: list[str], folder: Path | None = None, **environment: str) -> str:
    """What a command prints; raises CannotFetch."""
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
