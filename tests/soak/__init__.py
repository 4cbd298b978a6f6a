"""Run vnet-tui for long against a large host that changes all the time.

What is shown must stay right, and nothing may grow. `python -m tests.soak [SECONDS]`, or `make soak`: ten
minutes and full size without an argument.
"""
