"""Download Debian's kernels and unpack them into a cache outside the repository."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.debian import Apt, CannotFetch

SUITES = {"bookworm": "bookworm", "trixie": "trixie", "backports": "trixie-backports"}
_META = "linux-image-amd64"


@dataclass(frozen=True)
class Kernel:
    """Hold an unpacked kernel: name, release (`uname -r`), image, own cache folder."""

    name: str
    release: str
    image: Path
    folder: Path


def cache() -> Path:
    """Return the folder for everything that is kept between runs."""
    return debian.cache("kernels")


def one_at_a_time() -> AbstractContextManager[None]:
    """Wait until no other run uses the cache: two machines only slow each other down."""
    return debian.one_at_a_time(cache())


def kernel(name: str) -> Kernel:
    """Return a suite's newest kernel, cached if the mirror was asked within a week.

    Raises CannotFetch.
    """
    folder = cache() / name
    root = debian.unpacked(folder, [SUITES[name]], _packages, _finish)
    release, image = _image(root)
    return Kernel(name, release, image, folder)


def _image(root: Path) -> tuple[str, Path]:
    """Return the release and the image of an unpacked kernel."""
    for modules in sorted((root / "lib/modules").glob("*")):
        for image in (root / f"boot/vmlinuz-{modules.name}", modules / "vmlinuz"):
            if image.exists():
                return modules.name, image
    raise CannotFetch(f"the packages hold no kernel that is known here: see {root}")


def _finish(root: Path) -> None:
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    for modules in (root / "lib/modules").glob("*"):
        debian.run(["depmod", "-b", str(root), modules.name])
    _image(root)


def _packages(apt: Apt) -> list[str]:
    """Return the packages of the suite's newest kernel.

    That is the one that the meta package depends on, or the parts of the same version that it is split into.
    """
    (image,) = _depends(apt, _META, "linux-image-")[:1] or [""]
    if not image:
        raise CannotFetch(f"{_META} depends on no kernel")
    version = image.removeprefix("linux-image-")
    parts = [each for each in _depends(apt, image, "linux-") if each.endswith(version)]
    parts += [each for part in parts for each in _depends(apt, part, "linux-") if each.endswith(version)]
    return sorted({image, *parts})


def _depends(apt: Apt, package: str, start: str) -> list[str]:
    lines = apt.run("apt-cache", "depends", package).splitlines()
    found = [line.partition("Depends: ")[2] for line in lines if line.strip().startswith("Depends: ")]
    return [each for each in found if each.startswith(start)]
