#!/bin/sh
# Records the demo lab into the file that `vnet-tui demo` replays where it can't build the lab.
# Without arguments it starts the lab and runs itself in there as `inside`: a recorder, and changes worth watching.
set -eu
cd "$(dirname "$0")/.."
program=.venv/bin/vnet-tui
file=tui/demo.vnetrec
new=tui/.demo.vnetrec.new

if [ "${1:-}" != inside ]; then
    rm -f "$new"
    $program demo "$0" inside
    chmod 644 "$new" # a recording of a real host is for its owner only; this one is for everybody
    mv "$new" "$file"
    ls -l "$file"
    exit
fi

traffic="/usr/bin/python3 -I -S core/lab/traffic.py" # COMMAND JOB...
in_container="unshare --mount --uts --ipc --pid --fork --mount-proc --kill-child"

$program accelerate br-shop --yes # so that there are flows to see that take the fast path
sleep 3 # for the connections to begin
$program record "$new" --for 90s &
recorder=$!

sleep 6
echo "A network with a container appears."
ip link add br-preview type bridge
ip addr add 172.20.0.1/24 dev br-preview
ip link set br-preview up
ip netns add preview
ip link add v-preview type veth peer name eth0 netns preview
ip link set v-preview master br-preview up
ip -n preview link set lo up
ip -n preview link set eth0 up
ip -n preview addr add 172.20.0.2/24 dev eth0
ip -n preview route add default via 172.20.0.1
# shellcheck disable=SC2086 # several words each
nsenter --net=/run/netns/preview $in_container \
    sh -c "hostname preview && exec $traffic 'caddy run' 'serve-http 80'" </dev/null >/dev/null 2>&1 &
container=$!

sleep 7
echo "A port of it is published, and used."
nft add rule ip hostnat published tcp dport 8082 counter dnat to 172.20.0.2:80 comment '"preview of the new shop"'
# shellcheck disable=SC2086
nsenter --net=/run/netns/internet $traffic internet \
    "http 192.0.2.10 8082 size=30000 every=0.3 keep=9 from=203.0.113.200" </dev/null >/dev/null 2>&1 &
client=$!

sleep 10
echo "A fault is mended: blog's MTU fits its network."
ip -n blog link set eth0 mtu 1400

sleep 10
echo "The database loses its link for a while."
ip link set v-db down
sleep 7
ip link set v-db up

sleep 16
echo "The fault is back."
ip -n blog link set eth0 mtu 1500

sleep 10
echo "The new network is gone again."
kill -KILL "$client" "$container"
handle=$(nft -a list chain ip hostnat published | sed -n 's/.*dport 8082 .*# handle //p')
nft delete rule ip hostnat published handle "$handle"
ip netns del preview
ip link del br-preview

wait "$recorder"
