"""A real Kubernetes on one machine, without Docker and without a registry of images: docs/devcluster.md.

    with devcluster.ControlPlane() as cluster:
        cluster.kubectl("get", "namespaces")

`python -m devcluster` is the command; tests/cluster/conftest.py has the fixtures.
"""

from devcluster.cluster import Cluster, ControlPlane, NodeCluster
from devcluster.errors import BuildError, ClusterError, MachineError, StartError, StateError

__all__ = ["BuildError", "Cluster", "ClusterError", "ControlPlane", "MachineError", "NodeCluster", "StartError", "StateError"]
