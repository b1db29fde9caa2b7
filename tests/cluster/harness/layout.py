"""The names, addresses and paths of one cluster. Everything else follows from its name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .failure import Failure

ROOT = Path(__file__).resolve().parents[3]

# Addresses that RFC 5737 keeps for documentation: one that is seen outside is
# known at once for what it is.
NODE_ADDRESS = "192.0.2.1"
POD_NETWORK = "198.51.100.0/24"
SERVICE_NETWORK = "203.0.113.0/24"
API_SERVICE_ADDRESS = "203.0.113.1"
DNS_ADDRESS = "203.0.113.10"
API_PORT = 6443
CLUSTER_DOMAIN = "cluster.local"
NODE_NAME = "node"
POD_BRIDGE = "cni0"

PAUSE_IMAGE = "bulkhead.local/pause:1"
COREDNS_IMAGE = "bulkhead.local/coredns:1"


def base_directory() -> Path:
    """Where clusters keep what is theirs; not below the directories that a node replaces."""
    return Path(os.environ.get("BULKHEAD_CLUSTERS", "/var/cache/bulkhead-cluster"))


@dataclass(frozen=True)
class Cluster:
    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise Failure(f"`{self.name}` cannot name a cluster; use up to 40 of a-z, 0-9 and -")

    @property
    def directory(self) -> Path:
        return base_directory() / self.name

    @property
    def namespace(self) -> str:
        """The network namespace, as `ip netns` knows it; also the name of the cgroup."""
        return f"cluster-{self.name}"

    @property
    def namespace_path(self) -> Path:
        return Path("/run/netns") / self.namespace

    @property
    def credentials(self) -> Path:
        return self.directory / "credentials"

    @property
    def configuration(self) -> Path:
        return self.directory / "configuration"

    @property
    def logs(self) -> Path:
        """One file for each program, and `audit.log` of the API server."""
        return self.directory / "logs"

    @property
    def etcd(self) -> Path:
        return self.directory / "etcd"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's. The tests know this path."""
        return self.directory / "kubeconfig"

    @property
    def programs(self) -> Path:
        """Which programs it runs, for the commands that come after `up`."""
        return self.directory / "programs.json"

    def own(self, path: str) -> Path:
        """What the node sees at /run, /var/lib or /var/log, as this side sees it."""
        return self.directory / "node" / path.removeprefix("/")

    @property
    def containerd_socket(self) -> Path:
        return self.own("/run/containerd/containerd.sock")
