"""Images without a container engine: made of static programs, and loaded."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from image_archive import Content, archive  # of scripts/

from .failure import Failure
from .layout import Cluster

# What Linux calls a machine, and what images call it.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(file: Path, name: str, program: Path) -> None:
    """An image of one static program, which it runs as root."""
    inside = f"/{program.name}"
    content = Content(files={inside: program}, user="", entrypoint=[inside])
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    file.write_bytes(archive(content, name, architecture)[0])


def load(cluster: Cluster, file: Path, snapshotter: str) -> str:
    """Gives an archive's images to the node, where pods find them by their names."""
    if not file.is_file():
        raise Failure(f"there is no image archive {file}; `scripts/images` makes those of the project")
    command = ["ctr", f"--address={cluster.containerd_socket}", "--namespace=k8s.io", "images", "import"]
    done = subprocess.run(
        [*command, f"--snapshotter={snapshotter}", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise Failure(f"containerd did not take {file}, which must be a docker or OCI archive: {done.stdout.strip()}")
    return done.stdout.strip()
