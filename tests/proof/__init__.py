"""The proof that the ceiling holds: seeded fault schedules in virtual time. `python -m tests.proof`, `make prove`.

The ledger, the sync service with its witness, the proxies (till, log, syncer, the whole of front, exchange and attempt) are the
product's own. Simulated are time, the network, the upstream with its own bill, and what goes wrong. `docs/invariant.md` says
which step of the argument is attacked where.

`schedule` draws what happens from a seed and lets it happen; `truth` knows better than the product at every instant; `loop`,
`pipes`, `upstream`, `keeper`, `host` and `clients` are the world.
"""
