"""Share helpers of all tests: throw-away hosts, terminals, snapshots, traffic."""
