"""A real API server for the tests of this folder, and what each of them needs of it.

All processes of a run share one control plane: it starts with the first test that asks, and ends with the last process that
has it, also when pytest is killed. A test that stops or pauses a part of it takes `own_cluster` instead. What has to be
built is built before the first test, without its timeout. STEPDOWN_SKIP_CLUSTER=1 skips them all; nothing else does.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from devcluster import Cluster, ClusterError, ControlPlane, NodeCluster, binaries, debian, image

_HERE = Path(__file__).parent
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
_problem = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs a real API server (every test in tests/cluster)")
    config.addinivalue_line("markers", "node: needs a node that runs pods: root, and a minute")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.cluster)
            if os.environ.get("STEPDOWN_SKIP_CLUSTER") == "1":
                item.add_marker(pytest.mark.skip(reason="STEPDOWN_SKIP_CLUSTER=1"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds, if a test that was selected needs it; the tests fail with what went wrong."""
    ours = [item for item in session.items if item.get_closest_marker("cluster") and not item.get_closest_marker("skip")]
    if not ours or session.config.option.collectonly:
        return
    try:
        binaries.build(binaries.CONTROL_PLANE)
        if any(item.get_closest_marker("node") for item in ours):
            binaries.build(binaries.NODE)
            debian.install(debian.NODE)
            image.base()
    except ClusterError as problem:
        session.config.stash[_problem] = str(problem)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The run's API server. Others use it at the same time: keep to your `namespace`, or to names of your own."""
    yield from _shared(request, tmp_path_factory, "control-plane", ControlPlane)


@pytest.fixture(scope="module")
def node_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a node that runs pods, ready in 12 seconds. A machine has one at a time, so it ends with the module."""
    yield from _shared(request, tmp_path_factory, "node", NodeCluster)


def _shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, name: str, start: Callable[[Path], Cluster]
) -> Iterator[Cluster]:
    _fail_if_unbuilt(request)
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    held = Cluster.shared(Path(tempfile.gettempdir()) / f"sdc-{_RUN[:10]}-{name}", folder / f"{name}.lock", start)
    yield held
    held.release()


@pytest.fixture
def own_cluster(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A control plane that only this test has, to stop and pause as it likes; ready in four seconds."""
    _fail_if_unbuilt(request)
    with ControlPlane() as own:
        yield own


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new namespace with its service account; gone after the test with all that is in it."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., str]:
    """`kubectl("get", "pods", "-n", namespace)` is what it prints; it fails the test if kubectl does."""
    return cluster.kubectl


def _fail_if_unbuilt(request: pytest.FixtureRequest) -> None:
    if (problem := request.config.stash.get(_problem, None)) is not None:
        pytest.fail(f"The cluster cannot be built: {problem}", pytrace=False)
