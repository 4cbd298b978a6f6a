"""Boot a kernel in a virtual machine with this machine's files, and run a script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.kernels.packages import Kernel

ROOT = Path(__file__).parents[2]
SHARED = Path("/srv/vnet-shared")  # in the guest
_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/bin/virtiofsd")
_PROGRAMS = {
    "vng": "virtme-ng", "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static",
    "udevadm": "udev", "depmod": "kmod",
}  # fmt: skip
_EMULATED = 8  # factor against a real machine, with a reserve for busy ones
# A ROM whose first instructions end the machine: mov al,16; out 0xf4,al; hlt. QEMU ends with 2 * 16 + 1.
_ROM = bytes.fromhex("b010e6f4f4").rjust(65536 - 11, b"\xf4").ljust(65536, b"\xf4")
_ROM_ENDS_WITH = 33


def lacking() -> str:
    """Return what is missing to run virtual machines; "" if nothing is."""
    absent = [package for program, package in _PROGRAMS.items() if not shutil.which(program, path=_path())]
    absent += ["virtiofsd"] if not any(Path(each).exists() for each in _VIRTIOFSD) else []
    return f"apt install {' '.join(absent)}" if absent else ""


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@cache
def has_kvm() -> bool:
    """Return whether the processor supports virtual machines.

    /dev/kvm alone isn't enough: without the processor's own support it may open and then fail at the kernel's
    first unusual instruction.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    return bool({"vmx", "svm"} & set(flags)) and os.access("/dev/kvm", os.R_OK | os.W_OK) and _runs_rom()


def _runs_rom() -> bool:
    with tempfile.NamedTemporaryFile() as rom:
        rom.write(_ROM)
        rom.flush()
        words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-nodefaults", "-display", "none"]
        words += ["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios", rom.name]
        try:
            done = subprocess.run(words, capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == _ROM_ENDS_WITH


def slowness() -> float:
    """Return the factor for time-outs in a virtual machine: VNET_SLOW, or the default."""
    return float(os.environ.get("VNET_SLOW") or (1 if has_kvm() else _EMULATED))


def run(kernel: Kernel, script: str, seconds: float) -> int | None:
    """Boot the kernel and run `script` (bash) as root in the checkout.

    The kernel's folder is at SHARED. Prints the script's output. Returns its exit code, None if the machine
    did not get so far within `seconds`.
    """
    (kernel.folder / "script").write_text(_prologue() + script)
    end = kernel.folder / "exit"
    end.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="vnet-vm-") as tools:
        _wrap_virtiofsd(Path(tools))
        environment = os.environ | {"PATH": f"{tools}:{_path()}"}
        machine = subprocess.Popen(
            _words(kernel), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        output = threading.Thread(target=_pass_on, args=(machine,))
        output.start()
        try:
            machine.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"{kernel.name}: no end after {seconds:.0f} s", flush=True)
        finally:
            _end(machine)
            output.join()
    try:
        return int(end.read_text())
    except (OSError, ValueError):
        return None


def _pass_on(machine: subprocess.Popen[bytes]) -> None:
    """Print the machine's output.

    It can't have our own output, which it would truncate if that is a file.
    """
    assert machine.stdout
    while data := os.read(machine.stdout.fileno(), 4096):
        print(data.decode(errors="replace").replace("\r", ""), end="", flush=True)


def _wrap_virtiofsd(tools: Path) -> None:
    """Put a virtiofsd on the PATH with which the guest caches files.

    No file changes meanwhile, and without the cache each access takes ten times as long.
    """
    real = next(each for each in _VIRTIOFSD if Path(each).exists())
    wrapper = tools / "virtiofsd"
    wrapper.write_text(f'#!/bin/sh\nexec {real} --cache always "$@"\n')
    wrapper.chmod(0o755)


def _words(kernel: Kernel) -> list[str]:
    inside = f"bash {SHARED}/script </dev/null; echo $? >{SHARED}/exit"
    words = ["nice", "vng", "--run", str(kernel.image), "--user", "root", "--memory", "3G"]
    words += ["--cpus", str(min(os.cpu_count() or 1, 4)), "--cwd", str(ROOT)]
    words += ["--overlay-rwdir", str(ROOT), "--overlay-rwdir", "/root"]
    words += ["--rwdir", f"{SHARED}={kernel.folder}"]
    words += ["--append", "mitigations=off"]  # these cost an emulated processor time with every system call
    if not has_kvm():
        # Libraries such as numpy need a recent processor; each level of page tables costs time.
        words += ["--disable-kvm", "--qemu-opts=-cpu max,la57=off", "--append", "tsc=reliable"]
    return [*words, "--", inside]


def _end(machine: subprocess.Popen[bytes]) -> None:
    """Kill the machine's processes: vng, QEMU and virtiofsd."""
    with suppress(ProcessLookupError):
        os.killpg(machine.pid, signal.SIGKILL)
    machine.wait()


def _prologue() -> str:
    """Return the beginning of every script.

    This Python, the kernel's modules (the guest does not see this machine's /var/cache), and compiled
    programs that are kept.
    """
    return f"""\
set -e
export PATH={Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH={ROOT} HOME=/root
export VNET_SLOW={slowness():g} VNET_REQUIRE_ROOT=1 VNET_FUZZ={int(100_000 / slowness())} TMPDIR=/srv/tmp
modules=/lib/modules/$(uname -r)
rm -rf $modules && ln -s {SHARED}/root$modules $modules
mkdir -p /srv/tmp && mount -t tmpfs -o mode=1777 none /srv/tmp
mkdir -p /var/cache/vnet-tui {SHARED}/programs && chmod 700 {SHARED}/programs
mount --bind {SHARED}/programs /var/cache/vnet-tui
ulimit -n 65536
"""
