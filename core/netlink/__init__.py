"""Netlink: requests, dumps and events; entering network namespaces."""
