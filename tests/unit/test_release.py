"""The image and its wheelhouse, as far as they can be judged without building one. `python -m devcluster image` builds it, and
the tests that need pods run it.
"""

import re
from pathlib import Path

import pytest
import yaml
from release import helm, image, wheelhouse

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / image.DOCKERFILE).read_text()
FINAL = DOCKERFILE.rpartition("\nFROM ")[2]


def test_the_image_s_user_is_the_chart_s() -> None:
    """Another one could not write the ledger, or would be root, which "restricted" refuses."""
    (user,) = re.findall(r"^USER (\d+):(\d+)$", FINAL, re.MULTILINE)
    security = yaml.safe_load((helm.CHART / "values.yaml").read_text())["podSecurityContext"]
    assert user == (str(security["runAsUser"]), str(security["runAsGroup"]))
    assert security["runAsUser"] == security["fsGroup"] > 0


def test_every_wheel_is_checked_against_the_lock_and_none_is_looked_for_elsewhere() -> None:
    """A wheel that was put into the wheelhouse by another hand would be in every cluster."""
    assert "--no-index" in DOCKERFILE and "--require-hashes --requirement /build/requirements-runtime.lock" in DOCKERFILE
    assert "-name '*.pth'" in DOCKERFILE


def test_neither_pip_nor_wheels_stay_in_the_image() -> None:
    """What can install is of use to nobody but an intruder."""
    assert "wheelhouse" not in FINAL and "pip uninstall" in FINAL
    assert re.findall(r"^COPY .*$", FINAL, re.MULTILINE) == ["COPY --from=build /opt/stepdown /opt/stepdown"]


def test_nothing_is_imported_from_the_working_directory_and_nothing_is_written() -> None:
    """`python -m` looks in the working directory first, and that may be a volume."""
    for setting in ("PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1", "PYTHONDONTWRITEBYTECODE=1"):
        assert setting in FINAL


def test_the_build_sees_the_lock_and_the_wheelhouse_and_nothing_else() -> None:
    """The repository has keys of tests, a virtual environment, its history: none of it belongs to a builder."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["*", "!requirements-runtime.lock", "!dist/wheelhouse"]


@pytest.mark.parametrize("builder", ["docker", "buildah"])
def test_every_time_in_the_image_is_the_commit_s(builder: str) -> None:
    """Otherwise nobody can tell by building it whether an image is what its commit says."""
    built = image.command(builder, "stepdown:1", "python:3.11-slim-bookworm", "0123abc", "1700000000")
    assert "1700000000" in " ".join(built)
    assert {"BASE_IMAGE=python:3.11-slim-bookworm", "REVISION=0123abc", "stepdown:1"} <= set(built)


def test_wheels_are_the_image_s_not_this_machine_s() -> None:
    """Built on a Mac or on a newer Linux, the image would not start."""
    tags = wheelhouse.platforms("aarch64")
    assert tags[0] == "manylinux_2_36_aarch64" and "manylinux_2_37_aarch64" not in tags
    assert {"manylinux2014_aarch64", "manylinux_2_17_aarch64", "linux_aarch64"} <= set(tags)


def test_a_wheel_that_was_compiled_for_another_machine_is_refused(tmp_path: Path) -> None:
    """It would be found out by the build, in pip's words."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "stepdown-0.1.0-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(SystemExit, match=r"compiled for another machine.*COMPILE=0"):
        wheelhouse.add_own("aarch64", tmp_path / "own", tmp_path)
    assert wheelhouse.add_own("x86_64", tmp_path / "own", tmp_path).parent == tmp_path
    (tmp_path / "own" / "stepdown-0.2.0-py3-none-any.whl").touch()
    with pytest.raises(SystemExit, match="expected one wheel"):
        wheelhouse.add_own("x86_64", tmp_path / "own", tmp_path)
