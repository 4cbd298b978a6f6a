"""Run the system's own tools in a lab."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from core.lab import Lab
from tests.support.waiting import PATIENCE

# Every visible process: its name, command line, namespaces and initial environment.
_PROCESSES = """
import json, os
KINDS = ("net", "pid", "mnt", "uts", "ipc")
found = []
for pid in (name for name in os.listdir("/proc") if name.isdigit()):
    try:
        found.append({
            "comm": open(f"/proc/{pid}/comm").read().strip(), "pid": int(pid),
            "words": open(f"/proc/{pid}/cmdline").read().split(chr(0))[:-1],
            "environ": open(f"/proc/{pid}/environ").read().split(chr(0)),
            **{kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in KINDS},
        })
    except OSError:
        pass
print(json.dumps(found))
"""
_FETCH = "import sys, urllib.request as u; print(len(u.urlopen(sys.argv[1], timeout=3).read()))"


class Inside:
    """Run commands in a lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command on the lab's host and return its output."""
        process = self.lab.popen_inside(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=PATIENCE)
        assert not check or process.returncode == 0, err
        return out

    def json(self, *command: str) -> Any:
        """Run a command and parse its output as JSON."""
        return json.loads(self.run(*command) or "[]")

    def fetch(self, netns: str, url: str) -> int:
        """Fetch a URL in a namespace, "" for the host's.

        Return the number of bytes, -1 without an answer.
        """
        enter = ("ip", "netns", "exec", netns) if netns else ()
        command = (*enter, sys.executable, "-I", "-S", "-c", _FETCH, url)
        return int(self.run(*command, check=False) or -1)

    def all_processes(self) -> list[dict[str, Any]]:
        """Return the processes of the lab that last as long as the question, of any name."""
        found: list[dict[str, Any]] = self.json(sys.executable, "-I", "-S", "-c", _PROCESSES)
        return found

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return the processes of the lab by name; any of several with the same name."""
        return {process["comm"]: process for process in self.all_processes()}

    def netns(self, name: str) -> int:
        """Return the inode of a named namespace."""
        return int(self.run("stat", "-c", "%i", f"/run/netns/{name}"))

    def counter(self, link: str, name: str = "bytes", direction: str = "rx") -> int:
        """Return a counter of a link on the lab's host."""
        return self.json("ip", "-j", "-s", "link", "show", link)[0]["stats64"][direction][name]

    def rule(self, comment: str) -> tuple[dict[str, Any], int]:
        """Return the rule with that comment, and its packet counter."""
        for item in self.json("nft", "-j", "list", "ruleset")["nftables"]:
            rule = item.get("rule", {})
            if rule.get("comment") == comment:
                counters = [part["counter"]["packets"] for part in rule["expr"] if "counter" in part]
                return rule, counters[0]
        raise AssertionError(f"no rule has comment {comment!r}")
