"""How fast and how small the proxy is, beside nginx on the same machine: `make bench`. Nothing in the product imports this."""
