"""Talk netlink: requests and dumps, events, and entering network namespaces."""
