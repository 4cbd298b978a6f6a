"""Define the options of `vnet-tui capture`."""

from __future__ import annotations

import argparse

from tui.cli.option_types import bytes_of, count_of, seconds_of


def add_capture_options(capture: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    capture.add_argument(
        "what", metavar="WHAT",
        help="a container, network, link (web1/eth0), namespace, or flow (10.0.0.2:4000-10.0.0.3:80)",
    )  # fmt: skip
    capture.add_argument(
        "filter", nargs="*", metavar="FILTER", help="a filter as for tcpdump (man pcap-filter): port 443"
    )
    capture.add_argument(
        "-w", dest="file", metavar="FILE",
        help='pcapng file to write; it must not exist yet ("-": standard output); without it, print lines',
    )  # fmt: skip
    capture.add_argument(
        "-c", "--count", type=count_of, default=0, metavar="COUNT", help="stop after COUNT packets"
    )
    capture.add_argument(
        "--for", dest="seconds", type=seconds_of, metavar="TIME",
        help="duration (default 10m for a file, 24h for a ring, otherwise 1h; at most 24h)",
    )  # fmt: skip
    capture.add_argument(
        "--max-size", dest="size", type=bytes_of, metavar="SIZE",
        help="size limit of a file (default 256M, at most 2G)",
    )  # fmt: skip
    capture.add_argument(
        "--ring", type=count_of, default=0, metavar="COUNT",
        help="continue in a new file when one is full, and keep the newest COUNT",
    )  # fmt: skip
    capture.add_argument(
        "-s", "--snap-length", type=count_of, default=262_144, metavar="BYTES",
        help="keep at most BYTES of each packet (default 262144)",
    )  # fmt: skip
    capture.add_argument(
        "--ports", action="store_true", help="capture on each port of a network's bridge, not on the bridge"
    )
    capture.add_argument("--no-comments", action="store_true", help="don't name containers and processes")
    capture.add_argument(
        "-p", "--no-promiscuous", action="store_true", help="leave out packets for other MAC addresses"
    )
