"""Start a real podman with its API service inside a throw-away host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.docker.engine import IMAGE, busybox_image
from tests.docker.engine_folder import EngineFolder
from tests.support.host import ThrowawayHost

_ENVIRONMENT = os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}


def _options(folder: Path) -> list[str]:
    """Return the options that separate a podman from the machine's own."""
    return [
        f"--root={folder}/root", f"--runroot={folder}/run", f"--tmpdir={folder}/tmp", "--storage-driver=vfs",
        f"--network-config-dir={folder}/net", "--cgroup-manager=cgroupfs", "--log-level=error",
    ]  # fmt: skip


class PodmanHost:
    """Run podman in the namespace `host`, with `busybox:local`, API at `socket`."""

    def __init__(self) -> None:
        self.host = ThrowawayHost()
        self._place = EngineFolder(
            self.host.name, lambda folder: self._words(folder, "rm", "-f", "-a", "-t", "0")
        )
        self.folder = self._place.folder
        self.socket = str(self.folder / "podman.sock")

    def run(self, *words: str, check: bool = True, data: bytes | None = None) -> str:
        """Run `podman WORDS...` in the namespace; return its output, stripped."""
        done = subprocess.run(
            self._words(self.folder, *words),
            input=data, capture_output=True, check=False, timeout=60, env=_ENVIRONMENT,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(words)}: {(done.stderr or done.stdout).decode()}")
        return done.stdout.decode().rstrip("\n")

    def container(self, name: str, *options: str, command: str = "sleep 100000") -> str:
        """Run a container that sleeps; return its id."""
        parent = f"--cgroup-parent=/{self.folder.name}"
        return self.run(
            "run", "-d", "--stop-signal", "KILL", parent, "--name", name, *options, IMAGE, *command.split()
        )

    def start(self) -> None:
        """Start the API service.

        Raises AssertionError with the log's end if it doesn't answer.
        """
        self._place.start(
            Path(self.socket).exists,
            "podman", *_options(self.folder), "system", "service", "--time=0", f"unix://{self.socket}",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop the API service; containers go on."""
        self._place.stop()

    def import_image(self) -> None:
        """Make the image `busybox:local` from the machine's static busybox."""
        self.run("import", "-", IMAGE, data=busybox_image())

    def remove_containers(self) -> None:
        """Remove every container, and every network except podman's own."""
        self.run("rm", "-f", "-a", "-t", "0")
        names = self.run("network", "ls", "--format", "{{.Name}}").split()
        if others := [name for name in names if name != "podman"]:
            self.run("network", "rm", *others)

    def close(self) -> None:
        """Remove everything that podman made."""
        self._place.close()
        self.host.close()

    def _words(self, folder: Path, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.host.name}", "podman", *_options(folder), *words]
