#!/usr/bin/env bash
# Installs what vnet-tui needs: distribution packages, then a virtual environment in .venv.
# Usage: scripts/setup.sh [run|dev]. Does nothing, at once, when all is in place.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-run}
lock=requirements-$what.lock

# BCC is bound to the distribution's own Python, so that one makes the environment.
python=${VNET_PYTHON:-/usr/bin/python3}

run_debian=(python3 python3-venv python3-bpfcc linux-libc-dev iproute2 nftables iptables conntrack)
dev_debian=(shellcheck tmux procps iputils-ping ethtool tcpdump bpftool iperf3 netperf busybox-static docker.io
    docker-cli podman netavark openvswitch-switch)
run_fedora=(python3 python3-bcc kernel-headers iproute nftables iptables-nft conntrack-tools)
dev_fedora=(ShellCheck tmux procps-ng iputils ethtool tcpdump bpftool iperf3 busybox docker podman netavark
    openvswitch make)

stamp() { printf '.venv/.installed-%s' "$1"; }
wanted() { cat pyproject.toml "requirements-$1.lock" scripts/setup.sh; pwd; "$python" -V 2>&1; }
in_place() { [[ -f $(stamp "$1") ]] && wanted "$1" | sha256sum | cmp -s - "$(stamp "$1")"; }

# What the tests need holds all that running it does.
if in_place dev || in_place "$what"; then
    exit 0
fi

say() { printf 'vnet-tui set-up: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "these packages need root to install: run 'sudo scripts/setup.sh $what'"; fi
}

install_debian() {
    local missing=() known=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    [[ ${#missing[@]} -eq 0 ]] && return
    as_root apt-get update -qq
    # Debian's relatives lack some of them, or call them by other names.
    for package in "${missing[@]}"; do
        if [[ -n $(apt-cache madison "$package") ]]; then known+=("$package")
        else say "there is no package $package here: going on without it"; fi
    done
    [[ ${#known[@]} -eq 0 ]] && return
    say "installing ${known[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${known[@]}" >/dev/null
}

install_fedora() {
    local missing=()
    for package in "$@"; do rpm -q --quiet "$package" || missing+=("$package"); done
    [[ ${#missing[@]} -eq 0 ]] && return
    say "installing ${missing[*]}"
    as_root dnf install -y -q "${missing[@]}"
}

if command -v apt-get >/dev/null; then
    install_debian "${run_debian[@]}"
    [[ $what == dev ]] && install_debian "${dev_debian[@]}"
elif command -v dnf >/dev/null; then
    install_fedora "${run_fedora[@]}"
    [[ $what == dev ]] && install_fedora "${dev_fedora[@]}"
else
    say "neither apt-get nor dnf here: install the packages that README.md lists yourself; going on"
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' ||
    fail "$python is older than Python 3.12: set VNET_PYTHON to a newer one"

say "making the Python environment in .venv"
"$python" -m venv --system-site-packages .venv
.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r "$lock"
.venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
wanted "$what" | sha256sum >"$(stamp "$what")"
say "done"
