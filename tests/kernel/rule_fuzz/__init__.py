"""Compare random rules and changes on the kernel's path and the fast path.

`vocabulary`, `state` and `iptables` are what rules can match, `changes` what can change during a connection,
`cases` random combinations of both, `traffic` the packets, `hosts` two equal hosts, one with the fast path,
`compare` when packets are sent and whether the same arrive, `report` many cases.
"""
