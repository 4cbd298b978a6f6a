"""Send bounded probes from a namespace, and record what the kernel did with them.

`run` sends one packet and records it, `path` measures the path MTU and lists the hops.
"""
