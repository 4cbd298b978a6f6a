"""The eBPF fast path's place: programs, their loader and maps. The dashboard runs without it."""
