"""Images without a container engine: made of static programs, and loaded."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

from .failure import Failure
from .layout import Cluster

# What Linux calls a machine, and what images call it.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(archive: Path, name: str, program: Path) -> None:
    """A docker-archive with one static program in one layer, which it runs as its entrypoint."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, program.stat().st_size
        with program.open("rb") as content:
            files.addfile(entry, content)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getbuffer()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, mode="w") as files:
        _add(files, "config.json", json.dumps(config).encode())
        _add(files, "manifest.json", json.dumps(manifest).encode())
        _add(files, "layer.tar", layer.getvalue())


def _add(files: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    files.addfile(entry, io.BytesIO(content))


def load(cluster: Cluster, archive: Path, snapshotter: str) -> str:
    """Gives an archive's images to the node, where pods find them by their names."""
    if not archive.is_file():
        raise Failure(f"there is no image archive {archive}; `scripts/images` makes those of the project")
    command = ["ctr", f"--address={cluster.containerd_socket}", "--namespace=k8s.io", "images", "import"]
    done = subprocess.run(
        [*command, f"--snapshotter={snapshotter}", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise Failure(f"containerd did not take {archive}, which must be a docker or OCI archive: {done.stdout.strip()}")
    return done.stdout.strip()
