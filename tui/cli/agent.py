"""Run `vnet-tui agent`, or print its systemd unit."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.agent import Agent
from core.operations import SetStormGuard
from core.operations.attachments import read_attachments
from core.state import StateError
from core.text import failure_sentence, safe
from tui.cli.console import require_rights
from tui.command import CommandError

if TYPE_CHECKING:
    from core.metrics.collector import DropSource
    from core.model import Drop
    from core.topology import Topology


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or Ctrl-C; each action is a line on standard output."""
    if options.unit:
        sys.stdout.write(
            render(options.metrics, options.accelerate, options.strict, options.drops, options.etcd)
        )
        return 0
    require_rights()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _accelerating(options.accelerate, options.strict), _serving(options.metrics, options.drops):
        try:
            Agent(_print, stop).run()
        except StateError as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"can't receive kernel events: {error.strerror}") from error
    return 0


@contextmanager
def _accelerating(targets: list[str], strict: bool) -> Iterator[None]:
    """Keep the fast path up for these while the body runs."""
    if not targets:
        yield
        return
    from tui.cli.fastpath_agent import FastPathRunner

    kept = FastPathRunner(targets, _print, strict)
    kept.start()
    try:
        yield
    finally:
        kept.close()


def _print(text: str) -> None:
    print(safe(text), flush=True)


@contextmanager
def _serving(address: str, drops: bool = False) -> Iterator[None]:
    """Serve metrics during the body if an address is given. Raises CommandError.

    With `drops` they include dropped packets.
    """
    if drops and not address:
        raise CommandError("can't count drops: only metrics show them. Try: --metrics 127.0.0.1:9742")
    if not address:
        yield
        return
    try:
        # Imported only if metrics are served.
        from core.metrics import MetricsError, MetricsServer
        from tui.cli.fastpath_agent import FastPathMetrics
    except ImportError as error:
        reason = f"{error.name} isn't installed. Try: pip install {error.name}" if error.name else str(error)
        raise CommandError(f"can't serve metrics: {safe(reason)}") from error
    try:
        server = MetricsServer(address, _print, FastPathMetrics(), _drop_source() if drops else None)
    except MetricsError as error:
        raise CommandError(safe(str(error))) from error
    try:
        yield
    finally:
        server.close()


def _drop_source() -> DropSource:
    """Count dropped packets from now on; raises CommandError."""
    from bpf.drops import DropCounter
    from core.drops import DropsUnavailable

    try:
        counter = DropCounter()
    except DropsUnavailable as error:
        sentence = failure_sentence("can't count dropped packets", error.why, error.try_)
        raise CommandError(safe(sentence)) from error

    def read(topology: Topology) -> tuple[Iterable[Drop], int]:
        counter.set_owners(topology.reachable_addresses())
        found = counter.read()
        counter.keep_namespaces(topology.snapshot.namespaces)
        return found

    return read


_PACKAGES = Path(__file__).parents[2]  # the folder that holds `tui`
_STATE = "VNET_STATE"
# Variables with places to look at, passed on to the agent if they are set.
_ENGINES = ("DOCKER_HOST", "CONTAINER_HOST")
_PASSED_ON = (_STATE, *_ENGINES, "VNET_ENGINES")
_LOCAL = "unix://"
# With ProtectHome=yes a service sees nothing of these.
_HOMES = ("/home", "/root", "/run/user")
_UNIT = """\
[Unit]
Description=Keeps up the networks that vnet-tui made
After=network.target nftables.service firewalld.service docker.service podman.socket
{module}
[Service]
Type=exec
ExecStart={start}
{settings}
Restart=on-failure
RestartSec=2

# Changing links, addresses, routes and rules; entering containers' network namespaces; reaching these by the
# pid of a process that has other capabilities{why}.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_SYS_PTRACE{capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome={home}
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
PrivateDevices=yes
PrivateTmp={tmp}
# AF_INET: an ioctl of netdevice(7) needs such a socket; nothing is sent but metrics or to etcd.
RestrictAddressFamilies={families}
{addresses}
# It enters network namespaces, and makes an empty one to try its rules in; for metrics it asks hostnames.
RestrictNamespaces={namespaces}
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
{calls}SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""
# The fast path keeps its compiled program, compiles beside it, and is asked by a socket, also by others than
# the agent. Kernels before 5.11 count its maps as locked memory.
_FAST = """\
RuntimeDirectory=vnet-tui
RuntimeDirectoryPreserve=yes
CacheDirectory=vnet-tui
CacheDirectoryMode=0700
Environment=TMPDIR=/var/cache/vnet-tui
LimitMEMLOCK=infinity"""
# The service may not load modules, so systemd loads this one if it isn't built in.
_MODULE = """\
Wants=modprobe@nf_conntrack.service
After=modprobe@nf_conntrack.service
"""
# With AF_INET6 a raw socket sees changes of iptables-legacy.
_FAST_WHY = """;
# hearing of changes in these (BROADCAST), and of those of iptables-legacy (RAW)"""


def render(
    metrics: str = "",
    accelerate: Sequence[str] = (),
    strict: bool = False,
    drops: bool = False,
    etcd: bool = False,
) -> str:
    """Return the systemd unit of this installation.

    `metrics` is the address to serve metrics at ("" for none), `accelerate` what to run the fast path for,
    `strict` its mode; `drops`: metrics include dropped packets; `etcd`: overlays have one.
    """
    words, more = _program()
    environment = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)} | more
    settings = [f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()]
    state, serving = os.environ.get(_STATE), ("--metrics", metrics) if metrics else ()
    settings += [f"ReadWritePaths={_quoted(state)}"] if state else ["StateDirectory=vnet-tui"]
    settings += [] if state else ["StateDirectoryMode=0700"]
    needs_bpf = bool(accelerate or drops or _guards_storms())
    settings += [_FAST] if needs_bpf else []
    fast = ("--accelerate", *accelerate, *(["--strict"] if strict else [])) if accelerate else ()
    fast = (*fast, *(["--drops"] if drops else []))
    needed = [*words[:1], sys.executable, sys.prefix, str(_PACKAGES), *([state] if state else [])]
    needed += [url.removeprefix(_LOCAL) for url in _engines() if url.startswith(_LOCAL)]
    return _UNIT.format(
        start=" ".join(_quoted(word.replace("$", "$$")) for word in (*words, "agent", *serving, *fast)),
        families="AF_UNIX AF_NETLINK AF_INET" + " AF_INET6" * ("[" in metrics or bool(accelerate) or etcd),
        addresses=_addresses(metrics, etcd),
        capabilities=" CAP_NET_RAW CAP_NET_BROADCAST" if accelerate else "",
        namespaces="net uts" if metrics else "net",
        why=_FAST_WHY if accelerate else "",
        calls="SystemCallFilter=bpf\n" if needs_bpf else "",
        module=_MODULE if accelerate else "",
        settings="\n".join(settings),
        home="read-only" if any(_is_below(path, _HOMES) for path in needed) else "yes",
        tmp="no" if any(_is_below(path, ("/tmp", "/var/tmp")) for path in needed) else "yes",
    )


def _guards_storms() -> bool:
    """Return whether an attachment that the agent repeats has a storm guard."""
    try:
        steps = [step for one in read_attachments() for step in one.steps]
    except StateError:
        return False
    return any(isinstance(step, SetStormGuard) for step in steps)


def _engines() -> list[str]:
    """Return the engines' URLs from the environment, "" if unset."""
    return [os.environ.get(name, "") for name in _ENGINES]


def _addresses(metrics: str, etcd: bool) -> str:
    """Return the unit's lines about the addresses that its sockets may use."""
    if etcd:
        return "# etcd is asked: where its address is known, IPAddressDeny=any and IPAddressAllow=."
    if any(url and not url.startswith(_LOCAL) for url in _engines()):
        return "# An engine at another address is asked: no IPAddressDeny=."
    if not metrics:
        return "IPAddressDeny=any"
    if metrics.startswith(("127.", "[::1]", "localhost:")):
        return "IPAddressDeny=any\nIPAddressAllow=localhost"
    return "# Metrics are served to others: where these are known, IPAddressDeny=any and IPAddressAllow=."


def _program() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command of this installation, and the environment that it needs."""
    beside = Path(sys.executable).with_name("vnet-tui")
    if beside.is_file() and os.access(beside, os.X_OK):
        return (str(beside),), {}
    return (sys.executable, "-P", "-m", "tui.cli"), {"PYTHONPATH": str(_PACKAGES)}


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    places = (Path(path), Path(path).resolve())
    return any(place.is_relative_to(folder) for place in places for folder in folders)


def _quoted(word: str) -> str:
    """Quote one word for a unit file (systemd.syntax(7))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(one in " \t\"'\\;" for one in word) else escaped
