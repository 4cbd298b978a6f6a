"""Changes that are killed at random calls, recovered, and compared with what was before.

`host` the machine on which that happens and all that is compared of it, `trials` what is killed when.
tests/support/killing.py does the killing.
"""
