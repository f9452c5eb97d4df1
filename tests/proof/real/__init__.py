"""Schedules of faults with real processes, real sockets, real kills and real time: `make prove-real`.

`tests/proof` drives the product's code in one process and virtual time, and so may look into it. Here nobody can: the operator
and the proxies are processes on a real API server, and what is judged is what anybody could see from outside: the bill of an
upstream that shares no code with them, the ledger as it is on disk, and what clients were answered. READ `schedule` FIRST.
"""
