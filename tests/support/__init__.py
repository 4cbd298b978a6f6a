"""What tests share: throw-away hosts and machines, terminals, hand-built snapshots, traffic."""
