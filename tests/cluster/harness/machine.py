"""What a cluster needs of this machine, and where its programs are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from .failure import Failure
from .layout import ROOT, base_directory

NEWEST = "1.36"
VERSIONS = (NEWEST, "1.34")
KUBERNETES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
# Not everybody's PATH has the programs of the system.
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Programs:
    """Everything that a cluster runs."""

    version: str  # Kubernetes' own
    kubernetes: Path  # a directory
    helm: Path
    coredns: Path
    pause: Path
    cni_plugins: Path  # a directory
    snapshotter: str

    def write(self, file: Path) -> None:
        """Kept, so that what runs stays what it was while the project's files change."""
        file.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, file: Path) -> Programs:
        kept = json.loads(file.read_text())
        return cls(**{name: value if name in ("version", "snapshotter") else Path(value) for name, value in kept.items()})

    def path(self, program: str) -> str:
        if program in KUBERNETES:
            return str(self.kubernetes / program)
        found = shutil.which(program)
        if found is None:
            raise Failure(f"there is no `{program}` in the PATH")
        return found


def extend_path() -> None:
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


def require_root() -> None:
    if os.geteuid() != 0:
        raise Failure(
            "a node needs root: for its network namespace, its mounts and its cgroups; run the command with sudo"
            " (`sudo --preserve-env=PATH,HOME`, so that what was built once is found)"
        )


def require_kernel() -> None:
    """Says what is missing before anything is begun."""
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems:
        subprocess.run(["modprobe", "--quiet", "overlay"], check=False)
    if not Path("/proc/sys/net/bridge").exists():
        subprocess.run(["modprobe", "--quiet", "br_netfilter"], check=False)
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        raise Failure(
            "this kernel has no `br_netfilter`, by which traffic between pods on one bridge passes the rules of Services;"
            " load it with `modprobe br_netfilter` (in a container: on its host)"
        )
    if not os.access("/sys/fs/cgroup", os.W_OK) or os.statvfs("/sys/fs/cgroup").f_flag & os.ST_RDONLY:
        raise Failure("/sys/fs/cgroup is read-only, so no container can be limited; in a container, run that one privileged")


def programs(version: str) -> Programs:
    """Gets what is missing, and says so while it does."""
    if version not in VERSIONS:
        raise Failure(f"there is no Kubernetes {version} here; the versions are {', '.join(VERSIONS)}")
    _tool("cluster-packages")
    kubernetes = Path(_tool("kubernetes", *([] if version == NEWEST else [version])))
    spoken = subprocess.run([kubernetes / "kubelet", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return Programs(
        version=spoken.split()[-1],
        kubernetes=kubernetes,
        helm=Path(_tool("helm")),
        coredns=Path(_tool("coredns")),
        pause=Path(_tool("pause")),
        cni_plugins=_cni_plugins(),
        snapshotter=_snapshotter(),
    )


def _tool(*arguments: str) -> str:
    done = subprocess.run([ROOT / "scripts/tool", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failure(f"`scripts/tool {' '.join(arguments)}` failed; its own words are above")
    return done.stdout.strip()


def _cni_plugins() -> Path:
    for directory in CNI_DIRECTORIES:
        if (directory / "bridge").exists():
            return directory
    raise Failure(f"there are no CNI plugins in {' or '.join(map(str, CNI_DIRECTORIES))}")


def _snapshotter() -> str:
    """Layers lie over each other where the file system can do that; else they are copied."""
    base = base_directory()
    base.mkdir(parents=True, exist_ok=True)
    below = subprocess.run(["stat", "--file-system", "--format=%T", base], stdout=subprocess.PIPE, text=True, check=True)
    has_overlay = "overlay" in Path("/proc/filesystems").read_text().split()
    return "overlayfs" if has_overlay and below.stdout.strip() != "overlayfs" else "native"
