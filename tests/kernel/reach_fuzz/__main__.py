"""Run cases; see the package."""

from tests.kernel.reach_fuzz.run import main

main()
