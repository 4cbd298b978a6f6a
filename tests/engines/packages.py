"""Fetch container engines from Debian's packages into a cache, without installing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.debian import Apt, CannotFetch

_DOCKER = ("docker.io", "containerd", "runc")
_NETAVARK = ("netavark", "aardvark-dns")
_DOCKER_TESTS = ("tests/docker",)
_PODMAN_TESTS = ("tests/docker/test_podman.py", "tests/docker/test_agent_podman.py")


@dataclass(frozen=True)
class Series:
    """Versions of an engine that count as one.

    The newest version of the first of `packages` is taken that one of the `suites` has and that begins with
    `version`; the other packages come from the same suite, or from the next that has them. `tests` are those
    that depend on the engine. An engine that only knows cgroups of version 2 `needs_cgroup2`.
    """

    version: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    tests: tuple[str, ...]
    needs_cgroup2: bool = False


# Suites move on: a suite in which a series will be next comes after the one in which it is now.
ENGINES = {
    "docker-20.10": Series("20.10", ("bookworm",), (*_DOCKER, "libdevmapper1.02.1"), _DOCKER_TESTS),
    "docker-26.1": Series("26.1", ("trixie",), (*_DOCKER, "docker-cli"), _DOCKER_TESTS),
    "docker-28.5": Series("28.5", ("sid", "testing"), (*_DOCKER, "docker-cli"), _DOCKER_TESTS),
    "netavark-1.17": Series("1.17", ("sid", "testing"), _NETAVARK, _PODMAN_TESTS),
    "netavark-2.0": Series("2.0", ("experimental", "sid"), _NETAVARK, _PODMAN_TESTS),
    "podman-5.8": Series("5.8", ("sid", "testing"), ("podman", *_NETAVARK, "libgpgme45"), _PODMAN_TESTS),
    "podman-6.1": Series(
        "6.1",
        ("experimental", "sid"),
        ("podman", *_NETAVARK, "libgpgme45"),
        _PODMAN_TESTS,
        needs_cgroup2=True,
    ),
}


@dataclass(frozen=True)
class Engine:
    """Hold an unpacked engine: its name here, its version in Debian, its folder."""

    name: str
    version: str
    root: Path

    def environment(self) -> dict[str, str]:
        """Return variables with which programs start this engine."""
        folders = [str(self.root / folder) for folder in ("usr/sbin", "usr/bin")]
        found = {"PATH": os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])}
        if libraries := os.pathsep.join(str(one) for one in self._libraries()):
            found["LD_LIBRARY_PATH"] = libraries
        if (self.root / "usr/lib/podman").exists():
            found["CONTAINERS_CONF_OVERRIDE"] = str(self.root / "containers.conf")
        return found

    def _libraries(self) -> Iterator[Path]:
        for folder in ("usr/lib", "lib"):
            yield from (self.root / folder).glob("*-linux-gnu*")


def cache() -> Path:
    """Return the folder for everything that is kept between runs."""
    return debian.cache("engines")


def one_at_a_time() -> AbstractContextManager[None]:
    """Wait until no other run uses the cache."""
    return debian.one_at_a_time(cache())


def engine(name: str) -> Engine:
    """Return an engine of a series, cached if the mirror was asked within a week.

    Raises CannotFetch.
    """
    series, folder = ENGINES[name], cache() / name
    root = debian.unpacked(folder, series.suites, lambda apt: _packages(name, apt), _finish)
    version = (folder / "asked").read_text().split()[0].partition("=")[2]
    return Engine(name, version, root)


def _packages(name: str, apt: Apt) -> list[str]:
    """Return the packages of a series with their versions, as apt-get takes them."""
    series = ENGINES[name]
    first, *others = series.packages
    offered = _offered(first, apt)
    suite = next((suite for suite, version in offered if _is_of(version, series)), "")
    if not suite:
        there = ", ".join(f"{suite} has {version}" for suite, version in offered) or "none of them has it"
        raise CannotFetch(
            f"no {first} {series.version} in Debian's suites {', '.join(series.suites)} ({there}): "
            "name another series in tests/engines/packages.py"
        )
    found = [(first, dict(reversed(offered))[suite])]
    for package in others:
        versions = dict(reversed(_offered(package, apt)))
        if not versions:
            raise CannotFetch(f"there is no package {package} in Debian's suites {', '.join(series.suites)}")
        found.append((package, versions.get(suite) or next(iter(versions.values()))))
    return [f"{package}={version}" for package, version in found]


def _is_of(version: str, series: Series) -> bool:
    return version.rpartition(":")[2].startswith(f"{series.version}.")


def _offered(package: str, apt: Apt) -> list[tuple[str, str]]:
    """Return the suites that have a package, and their versions, newest first."""
    found = []
    for line in apt.run("apt-cache", "madison", package).splitlines():
        _, version, source = (part.strip() for part in line.split("|"))
        found.append((source.split()[1].partition("/")[0], version))
    return found


def _finish(root: Path) -> None:
    """Have podman use its helpers from this folder."""
    helpers = root / "usr/lib/podman"
    if not helpers.exists():
        return
    if (root / "usr/bin/podman").exists():
        _lend_libsubid(root)
    cached = root.parent / "root/usr/lib/podman"  # their path at run time
    folders = ", ".join(f'"{folder}"' for folder in (cached, "/usr/lib/podman", "/usr/libexec/podman"))
    # A limit of processes needs a controller, which a second mount of cgroups doesn't have.
    (root / "containers.conf").write_text(
        f"[engine]\nhelper_binaries_dir = [{folders}]\n[containers]\npids_limit = 0\n"
    )


def _lend_libsubid(root: Path) -> None:
    """Replace the newer libsubid, which needs a newer C library.

    Its functions are only called for users other than root.
    """
    for folder in (root / "usr/lib").glob("*-linux-gnu*"):
        for older in Path("/usr/lib", folder.name).glob("libsubid.so.5"):
            (folder / "libsubid.so.6").symlink_to(older)
