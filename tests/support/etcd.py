"""Run etcd on a throw-away host of an underlay, with its data in memory."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode

from tests.support.machine import Machine
from tests.support.waiting import wait_until


class EtcdServer:
    """Run etcd on a host; `url` is where it listens."""

    def __init__(self, host: Machine, address: str) -> None:
        self.host = host
        self.url = f"http://{address}:2379"
        host.run("ip link set lo up")
        self.start()

    def start(self) -> None:
        """Start it with the data that it had, and wait until it answers."""
        words = [
            "etcd", "--data-dir=/run/etcd", f"--listen-client-urls={self.url}", "--log-level=error",
            f"--advertise-client-urls={self.url}", "--unsafe-no-fsync",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            self.host.words("setpriv", "--pdeathsig", "KILL", *words),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers, "etcd")

    def _answers(self) -> bool:
        return "is healthy" in self.host.run(
            ["sh", "-c", f"etcdctl --endpoints {self.url} endpoint health 2>&1"], check=False
        )

    @property
    def _ctl(self) -> list[str]:
        return ["etcdctl", "--endpoints", self.url]

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()
        self.host.run("pkill -KILL -x etcd", check=False)
        wait_until(lambda: not self.host.run("pgrep -x etcd", check=False), "the end of etcd")

    def content(self) -> dict[str, str]:
        """Return all keys with their values."""
        found = json.loads(self.host.run([*self._ctl, "get", "--prefix", "", "-w", "json"]))
        return {
            b64decode(one["key"]).decode(): _decoded(one.get("value", "")) for one in found.get("kvs", [])
        }

    def put(self, key: str, value: str) -> None:
        """Set a key, which is bound to no lease."""
        self.host.run([*self._ctl, "put", "--", key], text=value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.host.run([*self._ctl, "del", "--", key])

    def close(self) -> None:
        """End it; its data go with its host."""
        self._process.kill()
        self._process.wait()


def _decoded(value: str) -> str:
    return b64decode(value).decode("utf-8", "replace")
