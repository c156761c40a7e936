"""Which internet addresses are public. A URL leads to no others, unless the user allows it.

A server that follows any address can be made to read what only it can reach: a router's page, a
cloud's credentials (169.254.169.254), a data base on this machine.
"""

import ipaddress

_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; some Pythons know parts of it only
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",  # documentation, RFC 9637
    )
]
_GLOBAL = ipaddress.ip_network("2000::/3")
"""The part of IPv6 that is assigned for use on the internet."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address, as `getaddrinfo` writes it, belongs to the public internet.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, NAT64) is judged by that one.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL:
            return False
    barred = any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)
    return ip.is_global and not (ip.is_multicast or barred)
