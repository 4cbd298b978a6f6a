"""Rule sets of container engines in several versions, for bridges in `BRIDGES`.

`docker0` has no container, `br-app` has one at 10.201.0.2 with port 80 published at 8080 and port 81 at
127.0.0.1:8081, `br-lan` another one at 10.202.0.2.
"""

from __future__ import annotations

BRIDGES = {"docker0": "10.200.0.1/24", "br-app": "10.201.0.1/24", "br-lan": "10.202.0.1/24"}
BRIDGES6 = {"br-app": "fd01::1/64", "br-lan": "fd02::1/64"}

_NAT = """
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.200.0.0/24 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.201.0.0/24 ! -o br-app -j MASQUERADE
-A DOCKER ! -i br-app -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.201.0.2:80
-A DOCKER -d 127.0.0.1/32 ! -i br-app -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.201.0.2:81
COMMIT
"""

# Docker 28, iptables: br-app is "nat" with a trusted host interface, br-lan "isolated" and --internal.
DOCKER_28 = (
    _NAT
    + """
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 10.201.0.2/32 -i up0 -j ACCEPT
-A PREROUTING -d 10.201.0.2/32 ! -i br-app -j DROP
-A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8081 -j DROP
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 10.201.0.2/32 ! -i br-app -o br-app -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d 10.201.0.2/32 ! -i br-app -o br-app -p tcp -m tcp --dport 81 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER ! -i br-app -o br-app -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-BRIDGE -o br-app -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-CT -o br-app -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-FORWARD -i br-app -j ACCEPT
-A DOCKER-FORWARD -i br-lan -o br-lan -j ACCEPT
-A DOCKER-INTERNAL ! -s 10.202.0.0/24 -o br-lan -j DROP
-A DOCKER-INTERNAL ! -d 10.202.0.0/24 -i br-lan -j DROP
COMMIT
"""
)

# Docker 20.10: isolation in two stages; IPv6 (experimental) of br-app alone.
DOCKER_20 = (
    _NAT
    + """
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br-app -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-app -j DOCKER
-A FORWARD -i br-app ! -o br-app -j ACCEPT
-A FORWARD -i br-app -o br-app -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d 10.201.0.2/32 ! -i br-app -o br-app -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d 10.201.0.2/32 ! -i br-app -o br-app -p tcp -m tcp --dport 81 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br-app ! -o br-app -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br-app -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
)
DOCKER_20_IPV6 = """
*filter
:FORWARD ACCEPT [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-ISOLATION-STAGE-1 -i br-app ! -o br-app -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o br-app -j DROP
COMMIT
"""

# Docker 29 with --firewall-backend=nftables.
DOCKER_NFT = """
table ip docker-bridges {
    map filter-forward-in-jumps {
        type ifname : verdict
        elements = { "docker0" : jump filter-forward-in__docker0,
                     "br-app" : jump filter-forward-in__br-app,
                     "br-lan" : jump filter-forward-in__br-lan }
    }
    map filter-forward-out-jumps {
        type ifname : verdict
        elements = { "docker0" : jump filter-forward-out__docker0,
                     "br-app" : jump filter-forward-out__br-app,
                     "br-lan" : jump filter-forward-out__br-lan }
    }
    map nat-postrouting-out-jumps {
        type ifname : verdict
        elements = { "docker0" : jump nat-postrouting-out__docker0,
                     "br-app" : jump nat-postrouting-out__br-app }
    }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap @filter-forward-in-jumps
        iifname vmap @filter-forward-out-jumps
    }
    chain nat-POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        iifname vmap @nat-postrouting-out-jumps
    }
    chain nat-PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump nat-prerouting-and-output
    }
    chain nat-prerouting-and-output {
        iifname != "br-app" tcp dport 8080 counter dnat to 10.201.0.2:80 comment "DNAT"
        iifname != "br-app" ip daddr 127.0.0.1 tcp dport 8081 counter dnat to 10.201.0.2:81 comment "DNAT"
    }
    chain raw-PREROUTING {
        type filter hook prerouting priority raw; policy accept;
        ip daddr 10.201.0.2 iifname != "br-app" counter drop comment "DROP DIRECT ACCESS"
        iifname != "lo" ip daddr 127.0.0.1 tcp dport 8081 counter drop comment "DROP REMOTE LOOPBACK"
    }
    chain filter-forward-in__docker0 {
        ct state established,related counter accept
        iifname "docker0" counter accept comment "ICC"
        counter drop comment "UNPUBLISHED PORT DROP"
    }
    chain filter-forward-out__docker0 {
        ct state established,related counter accept
        counter accept comment "OUTGOING"
    }
    chain nat-postrouting-out__docker0 {
        oifname != "docker0" ip saddr 10.200.0.0/24 counter masquerade comment "MASQUERADE"
    }
    chain filter-forward-in__br-app {
        ct state established,related counter accept
        iifname "br-app" counter accept comment "ICC"
        ip daddr 10.201.0.2 tcp dport 80 counter accept
        ip daddr 10.201.0.2 tcp dport 81 counter accept
        counter drop comment "UNPUBLISHED PORT DROP"
    }
    chain filter-forward-out__br-app {
        ct state established,related counter accept
        counter accept comment "OUTGOING"
    }
    chain filter-forward-in__br-lan {
        ct state established,related counter accept
        iifname != "br-lan" counter drop comment "INTERNAL NETWORK INGRESS"
        counter accept comment "ICC"
    }
    chain filter-forward-out__br-lan {
        ct state established,related counter accept
        oifname != "br-lan" counter drop comment "INTERNAL NETWORK EGRESS"
    }
    chain nat-postrouting-out__br-app {
        oifname != "br-app" ip saddr 10.201.0.0/24 counter masquerade comment "MASQUERADE"
    }
}
"""

# netavark 2: three isolated networks, and the mark of packets to published ports.
NETAVARK_2 = """
table inet netavark {
    chain FORWARD {
        type filter hook forward priority filter; policy accept;
        ct state invalid drop
        jump NETAVARK-ISOLATION-1
        ip daddr 10.201.0.0/24 ct state established,related accept
        ip saddr 10.201.0.0/24 accept
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        meta mark & 0x00002000 == 0x00002000 masquerade
        ip saddr 10.201.0.0/24 jump nv_app
    }
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump NETAVARK-HOSTPORT-DNAT
    }
    chain NETAVARK-HOSTPORT-SETMARK {
        meta mark set meta mark | 0x00002000
    }
    chain NETAVARK-HOSTPORT-DNAT {
        tcp dport 8080 jump nv_app_dnat
    }
    chain nv_app {
        ip daddr 10.201.0.0/24 accept
        ip daddr != 224.0.0.0/4 masquerade
    }
    chain nv_app_dnat {
        ip saddr 10.201.0.0/24 tcp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
        ip saddr 127.0.0.1 tcp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
        tcp dport 8080 dnat ip to 10.201.0.2:80
    }
    chain NETAVARK-ISOLATION-1 {
        iifname "docker0" oifname != "docker0" jump NETAVARK-ISOLATION-2
        iifname "br-app" oifname != "br-app" jump NETAVARK-ISOLATION-2
        iifname "br-lan" oifname != "br-lan" jump NETAVARK-ISOLATION-2
    }
    chain NETAVARK-ISOLATION-2 {
        oifname "br-app" drop
        jump NETAVARK-ISOLATION-3
    }
    chain NETAVARK-ISOLATION-3 {
        oifname "docker0" drop
        oifname "br-lan" drop
    }
}
"""
