"""Random rule sets and changes, run through the kernel's path and the fast path, and compared.

`vocabulary`, `state` and `iptables` what rules can look at, `changes` what can change under them, `cases`
random combinations of both, `traffic` the packets, `places` two equal hosts, one with the fast path,
`compare` what is sent when and whether the same arrives, `report` many cases.
"""
