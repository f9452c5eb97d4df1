"""Reading folders. If these fail, a policy that lies in the folder is not in force, or one that was deleted is."""

import os
from pathlib import Path

import pytest

from stepdown.local.documents import Folder, FolderMissing, Loaded, line_of

LATER_NS = 4_000_000_000_000_000_000
"""Long after any file of a test was written, so that the cache may trust it."""

ROUTE = "apiVersion: stepdown.dev/v1alpha1\nkind: ModelRoute\nmetadata: {name: %s}\nspec: {}\n"


def load(*roots: Path) -> Loaded:
    return Folder([str(root) for root in roots]).load(LATER_NS)


def names(loaded: Loaded) -> list[str]:
    return [document.body["metadata"]["name"] for document in loaded.documents]


def test_every_file_of_a_folder_is_read_in_a_stable_order(tmp_path: Path) -> None:
    """The order decides which of two equal objects is named first: it must not change from run to run."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.yml").write_text(ROUTE % "second")
    (tmp_path / "a.yaml").write_text(ROUTE % "first")
    (tmp_path / "c.json").write_text('{"kind": "ModelRoute", "metadata": {"name": "third"}}')
    (tmp_path / "notes.txt").write_text("kind: ModelRoute")
    (tmp_path / ".hidden.yaml").write_text(ROUTE % "hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.yaml").write_text(ROUTE % "hidden")
    assert names(load(tmp_path)) == ["first", "second", "third"]
    assert names(load(tmp_path / "c.json", tmp_path / "b")) == ["third", "second"]


def test_a_mounted_configmap_is_read_once(tmp_path: Path) -> None:
    """Kubernetes mounts each file twice, the copy below `..data`: the second would be refused as a duplicate."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "a.yaml").write_text(ROUTE % "one")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert names(load(tmp_path)) == ["one"]


def test_a_link_to_a_folder_above_does_not_loop(tmp_path: Path) -> None:
    """A start that never ends is worse than any message."""
    (tmp_path / "a.yaml").write_text(ROUTE % "one")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(load(tmp_path)) == ["one"]


def test_items_of_a_list_are_objects(tmp_path: Path) -> None:
    """`kubectl get -o yaml` writes a List; what it exported must be usable as it is."""
    (tmp_path / "a.yaml").write_text("kind: List\nitems:\n- metadata: {name: x}\n- metadata:\n    name: y\n- 7\n")
    folder = Folder([str(tmp_path)])
    loaded = folder.load(LATER_NS)
    assert names(loaded) == ["x", "y"]
    assert line_of(loaded.documents[1], ("metadata", "name")) == 5
    (problem,) = loaded.problems
    assert "items.2: this is a number, not an object" in str(problem)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        (b"a: 1\na: 2\n", 2, "twice"),
        (b"a: [\n", 2, "not YAML"),
        (b"kind: A\n---\n- 1\n", 3, "a list, not an object"),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_the_rest_goes_on(tmp_path: Path, content: bytes, line: int, says: str) -> None:
    """One typo must not take every team's routes away, and must be found without a search."""
    (tmp_path / "bad.yaml").write_bytes(content)
    (tmp_path / "good.yaml").write_text(ROUTE % "good")
    loaded = load(tmp_path)
    assert "good" in [document.body.get("metadata", {}).get("name") for document in loaded.documents]
    (problem,) = loaded.problems
    assert str(problem).startswith(f"{tmp_path}/bad.yaml:{line}")
    assert says in str(problem)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    """A log file renamed to .yaml must not fill the memory of the process that serves every request."""
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    loaded = load(tmp_path)
    assert "Split it" in str(loaded.problems[0])
    assert loaded.unreadable == {str(tmp_path / "a.yaml")}


def test_a_reload_parses_only_what_changed(tmp_path: Path) -> None:
    """With 10,000 files a change of one must be in force within a second."""
    (tmp_path / "a.yaml").write_text(ROUTE % "a")
    (tmp_path / "b.yaml").write_text(ROUTE % "b")
    folder = Folder([str(tmp_path)])
    before = folder.load(LATER_NS)
    (tmp_path / "b.yaml").write_text(ROUTE % "changed")
    (tmp_path / "c.yaml").write_text(ROUTE % "new")
    after = folder.load(LATER_NS)
    assert names(after) == ["a", "changed", "new"]
    assert after.documents[0] is before.documents[0]
    (tmp_path / "a.yaml").unlink()
    assert names(folder.load(LATER_NS)) == ["changed", "new"]


def test_a_change_that_leaves_time_and_size_alike_is_seen(tmp_path: Path) -> None:
    """Two writes within one tick of the file system's clock: the second must not be missed for ever."""
    path = tmp_path / "a.yaml"
    path.write_text(ROUTE % "one")
    os.utime(path, ns=(1_000_000_000, 1_000_000_000))
    folder = Folder([str(tmp_path)])
    assert names(folder.load(1_500_000_000)) == ["one"]
    path.write_text(ROUTE % "two")
    os.utime(path, ns=(1_000_000_000, 1_000_000_000))
    assert names(folder.load(60_000_000_000)) == ["two"]


def test_a_touched_file_is_not_parsed_again(tmp_path: Path) -> None:
    """`git checkout` touches every file; what they say has not changed."""
    path = tmp_path / "a.yaml"
    path.write_text(ROUTE % "one")
    folder = Folder([str(tmp_path)])
    before = folder.load(LATER_NS)
    os.utime(path, ns=(1, 1))
    assert folder.load(LATER_NS).documents[0] is before.documents[0]


def test_a_root_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A typo in -f must not look like an empty policy."""
    with pytest.raises(FolderMissing, match="no such file or folder"):
        load(tmp_path / "nowhere")


def test_a_file_that_goes_bad_still_means_what_it_said(tmp_path: Path) -> None:
    """A budget whose file is being edited must not stop binding its routes for that minute."""
    path = tmp_path / "a.yaml"
    path.write_text(ROUTE % "one")
    folder = Folder([str(tmp_path)])
    before = folder.load(LATER_NS)
    for bad in ("kind: [", "a: 1\na: 2"):
        path.write_text(bad)
        loaded = folder.load(LATER_NS)
        assert loaded.documents == before.documents
        assert loaded.unreadable == {str(path)}
        assert len(loaded.problems) == 1
    path.write_text(ROUTE % "two")
    assert names(folder.load(LATER_NS)) == ["two"]
    path.unlink()
    assert folder.load(LATER_NS) == Loaded((), (), frozenset())
