#!/usr/bin/env bash
# Installs what vnet-tui needs: distribution packages, then a virtual environment in .venv.
# Usage: scripts/setup.sh [run|dev|kernels]. Does nothing, at once, when all is in place. "kernels" installs what
# virtual machines need, and makes no environment.
set -euo pipefail
CDPATH='' cd "$(dirname "$0")/.."

what=${1:-run}
lock=requirements-$what.lock

# BCC comes from the distribution and is found by the distribution's own Python, so that one makes the environment.
python=${VNET_PYTHON:-/usr/bin/python3}
least=3.12

run_debian=(python3 python3-venv python3-bpfcc linux-libc-dev iproute2 nftables iptables conntrack)
dev_debian=(clang shellcheck tmux procps iputils-ping ethtool tcpdump bpftool iperf3 netperf busybox-static docker.io
    docker-cli podman netavark openvswitch-switch frr gobgpd etcd-server etcd-client systemd)
# udev loads the drivers by which a virtual machine's output comes out.
kernels_debian=(qemu-system-x86 virtme-ng virtiofsd busybox-static udev kmod)
run_fedora=(python3 python3-bcc kernel-headers iproute nftables iptables-nft conntrack-tools)
dev_fedora=(clang ShellCheck tmux procps-ng iputils ethtool tcpdump bpftool iperf3 busybox docker podman netavark
    openvswitch frr etcd make systemd)

if command -v apt-get >/dev/null; then
    packages=("${run_debian[@]}")
    [[ $what == dev ]] && packages+=("${dev_debian[@]}")
    [[ $what == kernels ]] && packages=("${kernels_debian[@]}")
    is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
    install() { install_debian "$@"; }
elif command -v dnf >/dev/null; then
    packages=("${run_fedora[@]}")
    [[ $what == dev ]] && packages+=("${dev_fedora[@]}")
    is_installed() { rpm -q --quiet "$1"; }
    install() { as_root dnf install -y -q "$@"; }
else
    packages=()
    is_installed() { false; }
fi

make_target() {
    case $1 in
        dev) echo setup-dev ;;
        kernels) echo test-kernels ;;
        *) echo setup ;;
    esac
}
say() { printf 'vnet-tui set-up: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

stamp() { printf '.venv/.installed-%s' "$1"; }
left_out() { printf '.venv/.left-out-%s' "$1"; } # a list of packages that needed root
wanted() { cat pyproject.toml "requirements-$1.lock" scripts/setup.sh; pwd; "$python" -V 2>&1; }
in_place() { [[ -f $(stamp "$1") ]] && wanted "$1" | sha256sum | cmp -s - "$(stamp "$1")"; }

missing_of() { for package in "$@"; do is_installed "$package" || echo "$package"; done; }

# Whether nothing is left that this user could install; names what root could.
is_whole() {
    local names=()
    [[ -f $(left_out "$1") ]] || return 0
    mapfile -t names <"$(left_out "$1")"
    mapfile -t names < <(missing_of "${names[@]}")
    [[ ${#names[@]} -eq 0 ]] && return
    [[ $EUID -eq 0 ]] && return 1
    go_on_without "$1" "${names[@]}"
}

go_on_without() {
    say "going on without ${*:2}: installing them needs root. Try: sudo make $(make_target "$1")"
}

is_older() { [[ $(printf '%s\n' "$1" "$least" | sort -V | head -n1) != "$least" ]]; }

refuse_older() {
    is_older "$1" || return 0
    fail "can't use $python: it is Python $1, and $least or newer is needed." \
        "Try: VNET_PYTHON=/path/to/python$least make $(make_target "$what") (everything but the fast path works with it), or Debian 13, Ubuntu 24.04 or Fedora."
}

python_version() { "$python" -V 2>&1; } # or why it doesn't run

check_python() {
    local text
    if text=$(python_version); then
        refuse_older "${text##* }"
    elif [[ -n ${VNET_PYTHON:-} ]]; then
        text=${text%%$'\n'*}
        fail "can't use VNET_PYTHON=$python: ${text#*: line *: }. Try: the whole path of a Python $least or newer"
    fi
}

can_be_root() {
    [[ $EUID -eq 0 ]] && return
    command -v sudo >/dev/null || return
    if [[ -t 0 ]]; then sudo -v; else sudo -n true 2>/dev/null; fi
}

as_root() { if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi; }

install_debian() {
    local known=()
    as_root apt-get update -qq
    # On a system without any Python yet: the one that would be installed.
    if [[ $python == /usr/bin/python3 && ! -x $python ]]; then
        refuse_older "$(apt-cache madison python3 | awk '{ sub("-.*", "", $3); print $3; exit }')"
    fi
    # Debian's relatives lack some of them, or call them by other names.
    for package in "$@"; do
        if [[ -n $(apt-cache madison "$package") ]]; then known+=("$package")
        else say "there is no package $package here: going on without it"; fi
    done
    [[ ${#known[@]} -eq 0 ]] && return
    say "installing ${known[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${known[@]}" >/dev/null
}

# Installs what is missing; what can't be installed without root is put into `without`.
install_packages() {
    local missing=()
    without=()
    if [[ ${#packages[@]} -eq 0 ]]; then
        say "neither apt-get nor dnf here: install the packages that docs/install.md lists; continuing"
        return
    fi
    mapfile -t missing < <(missing_of "${packages[@]}")
    [[ ${#missing[@]} -eq 0 ]] && return
    if can_be_root; then
        install "${missing[@]}" || fail "can't install ${missing[*]}: see above. Try: make $(make_target "$what") again, with a network connection"
    else
        without=("${missing[@]}")
        go_on_without "$what" "${without[@]}"
    fi
}

make_environment() {
    local pip=(.venv/bin/pip install -q --disable-pip-version-check)
    say "making the Python environment in .venv"
    "$python" -m venv --system-site-packages .venv ||
        fail "can't make .venv: see above. Try: sudo apt install python3-venv, or on other distributions what has Python's venv"
    if ! "${pip[@]}" --require-hashes -r "$lock" || ! "${pip[@]}" --no-deps --no-build-isolation -e .; then
        fail "can't install the Python packages: see above. Try: make $(make_target "$what") again, with a network connection"
    fi
    # Where Python may not write bytecode later, every start would compile the program again.
    .venv/bin/python -m compileall -q core bpf tui || say "no bytecode is kept: each start takes half a second longer"
}

# What root makes in someone else's checkout is theirs: they go on without root.
hand_over() {
    local owner
    owner=$(stat -c %u:%g .)
    [[ $EUID -ne 0 || $owner == 0:* ]] && return
    find . -path ./.git -prune -o -type d \( -name __pycache__ -o -name .venv -o -name '.*_cache' -o -name .hypothesis \
        -o -name build -o -name '*.egg-info' \) -prune -print0 | xargs -0r chown -hR --from=0 "$owner"
}

if [[ $what == kernels ]]; then
    command -v apt-get >/dev/null || fail "can't install Debian's kernels: there is no apt-get here. Try: Debian or Ubuntu"
    install_packages
    exit 0
fi

# What the tests need holds all that running it does.
for have in dev "$what"; do
    if in_place "$have" && is_whole "$have"; then
        [[ $what == dev ]] && hand_over
        exit 0
    fi
done

check_python
if [[ $EUID -ne 0 ]]; then
    for path in . .venv; do
        [[ ! -e $path || -w $path ]] || fail "can't write $path: it belongs to $(stat -c %U $path). Try: sudo make $(make_target "$what")"
    done
fi
install_packages
check_python
make_environment
rm -f "$(left_out "$what")"
[[ ${#without[@]} -eq 0 ]] || printf '%s\n' "${without[@]}" >"$(left_out "$what")"
wanted "$what" | sha256sum >"$(stamp "$what")"
hand_over
say "done"
