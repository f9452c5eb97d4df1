"""The witness outside the ledger: a ConfigMap with the high-water mark of every account. `sync` raises it before it grants.

Marks only grow. One that was lowered or taken away in the cluster is put back by the next raise as long as this process
remembers it; one that says what cannot be stops everything, since a mark too low would refill a budget.

One ConfigMap holds about ten thousand marks (1 MiB): `prune` takes away those of long ago.
"""

import asyncio
import logging
import re
from collections.abc import Mapping

from stepdown.cluster.backoff import Backoff
from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import ClusterError, Conflict, NotFound, Rejected
from stepdown.cluster.kinds import CONFIG_MAP, named
from stepdown.cluster.marknames import encode, entry, read

log = logging.getLogger(__name__)

LABELS = {"app.kubernetes.io/name": "stepdown", "app.kubernetes.io/managed-by": "stepdown"}
ATTEMPTS = 10
"""Others that write at the same moment: another leader that has not noticed yet, a person."""
LONGEST_PERIOD_S = 31 * 86_400
"""A calendar month. An account's name says when its period began, not when it ended."""
KEPT_S = 100 * 86_400
_ACCOUNT = re.compile(r".*@([0-9]+)")


class WitnessDamaged(ClusterError):
    """The ConfigMap says what cannot be: a person must mend it."""


class ConfigMapWitness:
    """Marks in nano-USD by account id (`shop/team@1793491200`), and whatever else only grows. See `sync.witness`."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "stepdown-witness") -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self._highest: dict[str, int] = {}
        """Every mark that the ConfigMap was ever known to have."""
        self._live: dict[str, int] | None = None
        """What it says now; None: that has to be read."""
        self._version = ""
        """Its version; empty: it is not there."""
        self._one_by_one = asyncio.Lock()

    def __str__(self) -> str:
        return named(CONFIG_MAP, self._namespace, self._name)

    async def read(self) -> dict[str, int]:
        """Every mark. Raises ClusterError, WitnessDamaged where the ConfigMap says what cannot be."""
        async with self._one_by_one:
            return dict(await self._look())

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        """When it returns, no mark is lower than in `marks`. Raises ClusterError: whether it has happened is not known then."""
        if any(mark < 0 for mark in marks.values()):
            raise ValueError(f"a mark is negative: {marks}")
        async with self._one_by_one:
            await self._raise(marks)

    async def _raise(self, marks: Mapping[str, int]) -> None:
        waits = Backoff(0.02, 0.5)
        for _ in range(ATTEMPTS):
            live = await self._look() if self._live is None else self._live
            if all(live.get(name, -1) >= mark for name, mark in marks.items()):
                return
            wanted = {name: max(mark, marks.get(name, 0)) for name, mark in {**marks, **self._highest}.items()}
            lacking = {name: mark for name, mark in wanted.items() if live.get(name, -1) < mark}
            try:
                await self._write(lacking)
            except (Conflict, NotFound):
                self._live = None
                await asyncio.sleep(waits.next_s())
            else:
                self._took({**live, **lacking})
                return
        raise Conflict(f"{self} is written by others all the time: {ATTEMPTS} attempts were in vain", status=409)

    async def prune(self, now_s: float) -> int:
        """Removes the marks of periods that ended more than 100 days ago, and returns how many. Raises ClusterError."""
        async with self._one_by_one:
            live = await self._look()
            old = [name for name in live if _ended_s(name) < now_s - KEPT_S]
            if old:
                self._live = None
                await self._patch(dict.fromkeys(map(encode, old)))
                for name in old:
                    del live[name], self._highest[name]
                self._live = live
                log.info("%s: %d marks of periods that ended over 100 days ago are removed", self, len(old))
            return len(old)

    async def _look(self) -> dict[str, int]:
        found = await self._cluster.get(CONFIG_MAP, self._namespace, self._name)
        if found is None and self._version:
            log.warning("%s is gone: the next mark makes it anew, with the %d that are remembered", self, len(self._highest))
        self._version = found["metadata"]["resourceVersion"] if found is not None else ""
        return self._took(self._read(found.get("data") or {} if found is not None else {}))

    def _read(self, data: Mapping[str, str]) -> dict[str, int]:
        marks = {}
        for key, value in data.items():
            told = read(key, value)
            if told is None:
                raise WitnessDamaged(
                    f"{self}: data[{key!r}] is {value[:100]!r}; expected is a mark, such as '1250000000' (nano-USD). "
                    "Nothing is granted until it is mended: put back what was there, or remove the key if you know that the "
                    "account has spent nothing."
                )
            marks[told[0]] = told[1]
        return marks

    def _took(self, live: dict[str, int]) -> dict[str, int]:
        self._live = live
        for name, mark in live.items():
            self._highest[name] = max(mark, self._highest.get(name, 0))
        return live

    async def _write(self, lacking: Mapping[str, int]) -> None:
        data = dict(entry(name, mark) for name, mark in lacking.items())
        if self._version:
            await self._patch(data)
            return
        metadata = {"name": self._name, "namespace": self._namespace, "labels": LABELS}
        body = {"apiVersion": CONFIG_MAP.api_version, "kind": CONFIG_MAP.kind, "metadata": metadata, "data": data}
        try:
            made = await self._cluster.create(body)
        except NotFound as error:
            raise Rejected(f"{error}: the witness has its place in the operator's namespace", status=error.status) from error
        self._version = made["metadata"]["resourceVersion"]

    async def _patch(self, data: Mapping[str, str | None]) -> None:
        """A merge patch: only what changes is sent, and only onto the very version that was read."""
        patch = {"metadata": {"resourceVersion": self._version}, "data": data}
        made = await self._cluster.merge_patch(CONFIG_MAP, self._namespace, self._name, patch, metadata_only=True)
        self._version = made["metadata"]["resourceVersion"]


def _ended_s(name: str) -> float:
    """When the account's period had ended at the latest; never, where the name is no account's."""
    found = _ACCOUNT.fullmatch(name)
    return int(found[1]) + LONGEST_PERIOD_S if found else float("inf")
