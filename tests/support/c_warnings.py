"""Compile the C programs with clang's warnings as errors: `make clang`.

It is part of `make lint`. Text and flags are those that BCC gets, and the headers are the ones in BCC's
library, so neither root nor kernel headers are needed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from bpf.build import (
    drops_flags,
    flags,
    functions_flags,
    kernel_tree,
    part_text,
    source_text,
    storm_guard_flags,
)

_LIBRARY = "libbcc.so.0"
# How the headers begin that BCC includes before the program; each ends with a zero byte.
_HEADERS = {"bpf.h": b"#ifndef _UAPI__LINUX_BPF_H__", "helpers.h": b"#ifndef __BPF_HELPERS_H"}
# No warning depends on where a kernel's structures have their members.
_ANY_KERNEL = SimpleNamespace(
    enumerators={"BPF_F_IPV6": 1 << 7}, enums={}, offset=lambda *_: 8, size=lambda *_: 8,
    enumerator=lambda *_: 1, enumerators_of=lambda _: {}, parameters=lambda _: 5,
)  # fmt: skip


def main() -> int:
    """Print the warnings; return 1 if there are any, or if a required tool is missing."""
    try:
        found = warnings(source_text()) or warnings(part_text("drops.c"), drops_flags)
        found = found or warnings(part_text("functions.c"), functions_flags)
        found = found or warnings(part_text("storm_guard.c"), storm_guard_flags)
    except OSError as error:
        print(f"can't compile the C program with clang: {error}. Try: apt install clang python3-bpfcc")
        return 1 if os.environ.get("VNET_REQUIRE_ROOT") else 0
    print(found or "the C program has no warnings")
    return 1 if found else 0


def warnings(text: str, options: Callable[..., Iterator[str]] = flags) -> str:
    """Return clang's warnings about a text, "" for none; `options` are the program's flags.

    Raises OSError if clang or BCC is missing.
    """
    with kernel_tree() as tree, TemporaryDirectory() as folder:
        included = ["-include", "linux/kconfig.h"]
        for name, header in _bcc_headers().items():
            (Path(folder) / name).write_bytes(header)
            included += ["-include", name]
        words = [
            "clang", "-target", "bpf", "-O2", "-Wall", "-Wextra", "-Werror", "-ferror-limit=0",
            "-nostdinc", "-isystem", folder, f"-I{tree}/include", f"-I{tree}/include/uapi", "-D__KERNEL__",
            "-D__TARGET_ARCH_x86", *included, *options(_ANY_KERNEL),
            # No code for BPF: before BCC rewrites it, the text calls methods of maps.
            "-x", "c", "-emit-llvm", "-S", "-o", "/dev/null", "-",
        ]  # fmt: skip
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    return done.stderr.strip() or (f"clang ended with {done.returncode}" if done.returncode else "")


def _bcc_headers() -> dict[str, bytes]:
    library = _path_of(_LIBRARY)
    content = library.read_bytes()
    return {name: _text_around(content, begins) for name, begins in _HEADERS.items()}


def _path_of(library: str) -> Path:
    """Return the path at which the loader finds a shared library."""
    ctypes.CDLL(library)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(Path(line.split(maxsplit=5)[5]) for line in lines if f"/{library}" in line)


def _text_around(content: bytes, part: bytes) -> bytes:
    """Return the text between two zero bytes that contains this part."""
    found = content.find(part)
    if found < 0:
        raise OSError(f"{_LIBRARY} holds no text with {part.decode()}")
    return content[content.rfind(b"\0", 0, found) + 1 : content.index(b"\0", found)]


if __name__ == "__main__":
    sys.exit(main())
