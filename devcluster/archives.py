"""Images of one static program, written without any tool: what a node needs before it can run anything else.

The format is the docker-archive (`docker save`), which containerd imports.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

PAUSE = "localhost/devcluster/pause:1"
COREDNS = "localhost/devcluster/coredns:1"


def write(archive: Path, tag: str, program: Path, arguments: Sequence[str] = ()) -> None:
    """An image with nothing in it but the program, which runs as nobody."""
    layer = _tar({program.name: program.read_bytes()}, mode=0o755)
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}", *arguments], "User": "65534:65534"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    described = json.dumps(config).encode()
    name = f"{hashlib.sha256(described).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [f"{digest}.tar"]}]
    archive.write_bytes(_tar({name: described, f"{digest}.tar": layer, "manifest.json": json.dumps(manifest).encode()}))


def _tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    """The same bytes for the same files: no times, no owners."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(content), mode
            tar.addfile(about, io.BytesIO(content))
    return made.getvalue()
