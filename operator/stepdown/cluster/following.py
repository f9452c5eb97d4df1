"""LIST, then WATCH, then LIST again when the history is gone: one kind kept in sight for ever. `children` runs one for each
kind and namespace.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from stepdown.cluster.backoff import Backoff
from stepdown.cluster.client import Change, Cluster, Listing
from stepdown.cluster.clock import elapsed_s
from stepdown.cluster.errors import ClusterError, Gone, Unavailable
from stepdown.cluster.kinds import KindRef

log = logging.getLogger(__name__)

WATCH_S = 240.0
"""How long one watch lasts, at least; at most half as long again, so that they do not all end at once."""
SHORT_S = 1.0
"""A watch that ends sooner without a change was not worth asking for: the next one waits."""
TRIES = 3
"""Watches that fail in a row before the kind is listed anew."""


class Following:
    """One kind in one namespace ("": all)."""

    def __init__(
        self,
        cluster: Cluster,
        kind: KindRef,
        namespace: str,
        *,
        labels: str,
        listed: Callable[[Listing], None],
        changed: Callable[[Change], None],
    ) -> None:
        """Metadata only. `listed` is told every LIST, `changed` what comes after it; they must not raise."""
        self._cluster, self._kind, self._namespace, self._labels = cluster, kind, namespace, labels
        self._tell_list, self._tell_change = listed, changed
        self.listed = False
        """Whether there has been a LIST."""
        self.trouble = ""
        """Why it is not in sight at this moment; empty while it is."""

    async def run(self) -> None:
        """Until cancelled. Whatever fails is tried again for ever: nothing but the API server can end its trouble."""
        waits, version, failures = Backoff(), "", 0
        while True:
            began_s, heard = elapsed_s(), False
            try:
                if not version:
                    version = await self._list()
                async with contextlib.aclosing(self._watch(version)) as changes:
                    async for change in changes:
                        version, heard = change.resource_version, True
                        if change.type != "BOOKMARK":
                            self._tell_change(change)
                failures = 0
                self._well()
                if heard or elapsed_s() - began_s >= SHORT_S:
                    waits.reset()
                    continue
                wait_s = waits.next_s()
            except Gone:
                version, wait_s = "", waits.next_s()
            except ClusterError as error:
                failures = 1 if heard else failures + 1
                # A stream that is cut goes on from where it was. What is refused, or fails again and again, begins anew.
                if failures >= TRIES or not isinstance(error, Unavailable):
                    version, failures = "", 0
                self._ill(str(error))
                if heard:
                    waits.reset()
                wait_s = waits.next_s(error)
            await asyncio.sleep(wait_s)

    async def _list(self) -> str:
        listing = await self._cluster.list(self._kind, self._namespace, labels=self._labels, metadata_only=True)
        self._tell_list(listing)
        self.listed = True
        self._well()
        return listing.resource_version

    def _watch(self, version: str) -> Any:
        return self._cluster.watch(
            self._kind,
            self._namespace,
            labels=self._labels,
            resource_version=version,
            metadata_only=True,
            timeout_s=WATCH_S * (1 + random.random() / 2),
        )

    def _ill(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("%s; it is tried again", trouble)
        self.trouble = trouble

    def _well(self) -> None:
        if self.trouble:
            where = f" in {self._namespace}" if self._namespace else ""
            log.info("%s%s are in sight again", self._kind.plural, where)
        self.trouble = ""
