"""Compare `why` with real probes on random hosts with random faults.

`cases` makes a host, its servers and its probes of a random number; `run` builds it, asks `why` on a snapshot
and sends the probes; `python -m tests.kernel.reach_fuzz SEED FIRST COUNT STEP` prints one JSON line a case.
"""
