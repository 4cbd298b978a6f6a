"""Forward container connections in eBPF; the dashboard also runs without it."""
