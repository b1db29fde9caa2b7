"""Starts a node's programs, inside its namespaces, and waits until it is ready.

The mount namespace is one of its own: /run, /var/lib and /var/log are the
node's there, so two nodes share no path, the machine sees none of the mounts
of pods, and all of these go with the last process that lives there.
"""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path
from typing import Callable

from . import cgroups, configuration, images
from .api import Api
from .failure import Failure
from .layout import COREDNS_IMAGE, NODE_NAME, PAUSE_IMAGE, ROOT, Cluster
from .machine import Programs

OWN_DIRECTORIES = ("/run", "/var/lib", "/var/log")
# Settings of the whole machine that a kubelet sets as it starts. It reads and
# writes files of the node instead; what it wants in them is there already.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
SECONDS_TO_BE_READY = 180
LINES_OF_LOG = 20


def start(cluster: Cluster, programs: Programs) -> None:
    """Returns when pods can be made, and leaves the programs running."""
    cgroups.join(cluster.namespace, "programs")
    _mount_own_directories(cluster)
    _raise_limits()
    node = _Node(cluster, programs)
    node.start("containerd")
    node.start("etcd")
    node.start("kube-apiserver")
    node.wait("containerd listens", cluster.containerd_socket.exists)
    _load_own_images(cluster, programs)
    api = Api(cluster)
    node.wait("the API server is ready", api.is_ready)
    # What is stored was said before the node went down, if it ever was up.
    heartbeat, containers = api.heartbeat(NODE_NAME), api.running_containers()
    for program in ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy"):
        node.start(program)
    _apply_dns(cluster, programs)
    node.wait("the node is Ready", lambda: api.heartbeat(NODE_NAME) not in (None, heartbeat))
    node.wait("the default ServiceAccount is there", lambda: api.has_default_service_account("default"))
    node.wait("no pod counts on a container that is gone", lambda: not containers & api.running_containers())
    node.wait("CoreDNS is ready", lambda: api.has_ready_pod("kube-system", "k8s-app=kube-dns"))


class _Node:
    def __init__(self, cluster: Cluster, programs: Programs) -> None:
        self._cluster = cluster
        self._commands = configuration.commands(cluster, programs)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, program: str) -> None:
        with self._log(program).open("ab") as log:
            self._running[program] = subprocess.Popen(
                self._commands[program], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_TO_BE_READY
        while not holds():
            for program, process in self._running.items():
                if process.poll() is not None:
                    raise Failure(f"{program} stopped by itself; the end of its log:\n{self._end_of_log(program)}")
            if time.monotonic() > deadline:
                ends = "\n".join(f"---- {program}\n{self._end_of_log(program)}" for program in self._running)
                raise Failure(f"waited {SECONDS_TO_BE_READY} s until {what}; the ends of the logs:\n{ends}")
            time.sleep(0.05)

    def _log(self, program: str) -> Path:
        return self._cluster.logs / f"{program}.log"

    def _end_of_log(self, program: str) -> str:
        lines = self._log(program).read_text(errors="replace").splitlines()
        return "\n".join(lines[-LINES_OF_LOG:])


def _mount_own_directories(cluster: Cluster) -> None:
    # The mounts of the machine may come in here and those of pods not go out;
    # among containers they are shared, as kubelets expect of a node.
    _mount("--make-rslave", "/")
    _mount("--make-rshared", "/")
    for directory in OWN_DIRECTORIES:
        own = cluster.own(directory)
        own.mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(own), directory)
    for name, wanted in KERNEL_SETTINGS.items():
        setting = Path("/proc/sys") / name
        if setting.exists():
            own = cluster.directory / "node" / name.replace("/", ".")
            own.write_text(f"{wanted}\n")
            _mount("--bind", str(own), str(setting))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"`mount {' '.join(arguments)}` failed: {done.stdout.strip()}")


def _raise_limits() -> None:
    """Containers inherit how many files they may open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _load_own_images(cluster: Cluster, programs: Programs) -> None:
    for name, program in ((PAUSE_IMAGE, programs.pause), (COREDNS_IMAGE, programs.coredns)):
        archive = cluster.directory / "image.tar"
        images.write(archive, name, program)
        images.load(cluster, archive, programs.snapshotter)
        archive.unlink()


def _apply_dns(cluster: Cluster, programs: Programs) -> None:
    command = [programs.path("kubectl"), f"--kubeconfig={cluster.kubeconfig}", "apply", "--server-side"]
    manifest = ROOT / "tests/cluster/coredns.yaml"
    done = subprocess.run([*command, f"--filename={manifest}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"the API server did not take {manifest}: {done.stdout.strip()}")
