"""The vocabulary: resources, catalog, conditions, money, and the contracts with the proxy.

Kept empty on purpose: the proxy imports `model.config`, `model.sync` and `model.money` and must not pay for pydantic.
"""
