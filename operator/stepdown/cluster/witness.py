"""The witness outside the ledger: a ConfigMap with the high-water mark of every account. `sync` raises it before it grants."""

from collections.abc import Mapping

from stepdown.cluster.client import Cluster


class ConfigMapWitness:
    """Marks in nano-USD by account id (`shop/team@1793491200`). They only grow."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "stepdown-witness") -> None:
        raise NotImplementedError

    async def read(self) -> dict[str, int]:
        """Every mark. Raises ClusterError, WitnessDamaged where the ConfigMap says what cannot be."""
        raise NotImplementedError

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        """When it returns, no mark is lower than in `marks`."""
        raise NotImplementedError

    async def prune(self, now_s: float) -> int:
        """Removes the marks of periods that ended more than 100 days ago, and returns how many."""
        raise NotImplementedError
