"""Convert the values of options: durations, sizes, counts."""

from __future__ import annotations

import argparse
import re

from core.text import safe

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BYTES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_LEAST_SIZE, _MOST_SIZE = 10_000, 2 * 1000**3
_MOST_SECONDS = 24 * 3600


def seconds_of(text: str) -> float:
    """Convert "60s", "10m" or "1.5h" to seconds; for argparse."""
    found = _SPAN.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        reason = "at most 24h" if seconds > 0 else "not a duration"
        raise argparse.ArgumentTypeError(f"can't use {text!r}: {reason}. Try: 10m")
    return seconds


def bytes_of(text: str) -> int:
    """Convert "500k", "64M" or "1G" to bytes; for argparse."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _BYTES[found[2].lower()]) if found else 0
    if not _LEAST_SIZE <= size <= _MOST_SIZE:
        reason = "from 10k to 2G" if found else "not a size"
        raise argparse.ArgumentTypeError(f"can't use {text!r}: {reason}. Try: 64M")
    return size


def port_of(text: str) -> str:
    """Return "443", "443/tcp", "53/udp" or "icmp" unchanged; for argparse."""
    number, _, l4_proto = text.lower().partition("/")
    is_port = number.isascii() and number.isdecimal() and len(number) < 6 and 0 < int(number) < 65536
    if text and text.lower() != "icmp" and not (is_port and l4_proto in ("", "tcp", "udp")):
        words = f"can't use the port \"{safe(text)}\": it isn't a port. Try: 443/tcp, 53/udp or icmp"
        raise argparse.ArgumentTypeError(words)
    return text


def count_of(text: str) -> int:
    """Convert a positive whole number; for argparse."""
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"can't use {text!r}: not a positive number. Try: 100")
    return int(text)


def hosts_of(text: str) -> int:
    """Convert a number of lab hosts, 1 to 9; for argparse."""
    from core.lab.hosts import MOST_HOSTS

    if not (text.isascii() and text.isdecimal() and len(text) == 1 and 0 < int(text) <= MOST_HOSTS):
        raise argparse.ArgumentTypeError(f"can't use {text!r}: not from 1 to {MOST_HOSTS}. Try: 3")
    return int(text)
