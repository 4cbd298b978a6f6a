"""A long run against a large host that changes all the time: what is shown stays right, and nothing grows.

`python -m tests.soak [SECONDS]`, or `make soak`: ten minutes and full size without an argument.
"""
