"""Start a real Docker Engine inside a throw-away host, and remove all of it."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from functools import cached_property
from pathlib import Path

from tests.docker.engine_folder import EngineFolder
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, wait_until

IMAGE = "busybox:local"
_BUSYBOX = "/usr/bin/busybox"
SUBNET_GATEWAY = "10.200.0.1/24"


class DockerHost:
    """Run dockerd and containerd in the namespace `host`, with `busybox:local`.

    `socket` is the Engine API's path, `url` the same for DOCKER_HOST; `host` the ThrowawayHost it runs in.
    """

    def __init__(self) -> None:
        self.host = ThrowawayHost()
        self._place = EngineFolder(self.host.name)
        self.folder = self._place.folder
        self.socket = str(self.folder / "docker.sock")
        self.url = f"unix://{self.socket}"

    @property
    def namespace(self) -> str:
        """Return the name under /run/netns of the host's namespace."""
        return self.host.name

    @property
    def inode(self) -> int:
        """Return the inode of that namespace."""
        return self.host.inode

    @cached_property
    def version(self) -> tuple[int, int]:
        """Return the engine's version, as (28, 5)."""
        major, minor = self.run("version", "-f", "{{.Server.Version}}").split(".")[:2]
        return int(major), int(minor)

    def run(self, *words: str, check: bool = True) -> str:
        """Run `docker WORDS...` against this engine; return its output, stripped."""
        done = subprocess.run(
            ["docker", "-H", self.url, *words], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout.rstrip("\n")

    def container(self, name: str, *options: str, command: str = "sleep 100000") -> str:
        """Run a container that sleeps; return its id.

        The command is `docker run -d --name NAME OPTIONS busybox:local`.
        """
        return self.run(
            "run", "-d", "--stop-signal", "KILL", "--name", name, *options, IMAGE, *command.split()
        )

    def pid(self, name: str) -> int:
        """Return the engine's pid of a running container's first process."""
        return int(self.run("inspect", "-f", "{{.State.Pid}}", name))

    def start(self) -> None:
        """Start containerd and dockerd.

        Raises AssertionError with the log's end if they don't answer.
        """
        containerd = self.folder / "containerd.sock"
        if not (self.folder / "daemon.json").exists():
            self._dockerd_config()
        self._place.start(
            containerd.exists, "containerd", "--config", str(self._containerd_config(containerd))
        )
        self._place.start(
            lambda: self.run("version", check=False).count("Version:") > 1,
            "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec",
            "--pidfile", f"{self.folder}/docker.pid", "-H", self.url, "--containerd", str(containerd),
            "--config-file", str(self.folder / "daemon.json"), "--bip", SUBNET_GATEWAY,
            "--cgroup-parent", f"/{self.folder.name}", "--exec-opt", "native.cgroupdriver=cgroupfs",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop dockerd and containerd, and with them all containers.

        As `systemctl stop docker` does.
        """
        self._place.stop()

    def keep_containers(self, on: bool) -> None:
        """Set whether containers outlive the engine (dockerd's live-restore)."""
        self._dockerd_config(on)
        self._place.reload()
        wait_until(
            lambda: str(on).lower() in self.run("info", "-f", "{{.LiveRestoreEnabled}}"), "the setting"
        )

    def import_image(self) -> None:
        """Make the image `busybox:local` from the machine's static busybox."""
        subprocess.run(
            ["docker", "-H", self.url, "import", "-", IMAGE],
            input=busybox_image(), check=True, capture_output=True,
        )  # fmt: skip

    def remove_containers(self) -> None:
        """Remove every container, and every network except the engine's own."""
        if ids := self.run("ps", "-aq").split():
            self.run("rm", "-f", "-v", *ids)
        if ids := self.run("network", "ls", "-q", "--filter", "type=custom").split():
            self.run("network", "rm", *ids)

    def close(self) -> None:
        """Stop the engine and remove everything that it made."""
        if ids := self.run("ps", "-aq", check=False).split():
            self.run("rm", "-f", "-v", *ids, check=False)
        self._place.close()
        self.host.close()

    def _containerd_config(self, socket: Path) -> Path:
        path = self.folder / "containerd.toml"
        path.write_text(
            "version = 2\n"
            f'root = "{self.folder}/containerd-root"\nstate = "{self.folder}/containerd-state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{socket}"\n'
        )
        return path

    def _dockerd_config(self, keeps_containers: bool = False) -> Path:
        path = self.folder / "daemon.json"
        path.write_text(json.dumps({"live-restore": keeps_containers}))
        return path


def busybox_image() -> bytes:
    """Return a root file system (tar): busybox and links for its applets."""
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(_BUSYBOX, "bin/busybox")
        for applet in applets:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                tar.addfile(link)
    return archive.getvalue()
