"""Kill changes at random calls, recover, and compare with the state before.

`host` has the machine and the compared state, `trials` what is killed when. tests/support/killing.py does the
killing.
"""
