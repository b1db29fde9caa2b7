"""Brings a cluster up and takes it down, whatever happened between.

All that belongs to a cluster is found by its name: its directory, its network
namespace, its cgroup. What came up half goes down like any other.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from . import cgroups, configuration, credentials, machine, network
from .failure import Failure
from .layout import ROOT, Cluster, base_directory


@dataclass(frozen=True)
class Settings:
    """What a cluster was asked to be."""

    kubernetes: str = machine.VERSIONS[0]
    sync_frequency: str | None = None


def programs_of(cluster: Cluster) -> machine.Programs:
    """What a cluster that was started runs."""
    try:
        return machine.Programs.read(cluster.programs)
    except FileNotFoundError:
        raise Failure(f"there is no cluster `{cluster.name}`; `scripts/cluster up` starts one") from None


def say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def up(cluster: Cluster, settings: Settings, while_process: int | None) -> None:
    machine.require_root()
    machine.require_kernel()
    programs = machine.programs(settings.kubernetes)
    began = time.monotonic()
    with _locked(cluster):
        if cgroups.exists(cluster.namespace) and cgroups.processes(cluster.namespace, "programs"):
            raise Failure(f"cluster `{cluster.name}` is up already; `scripts/cluster down` ends it, `--name` makes another beside it")
        _clear(cluster)
        try:
            _prepare(cluster, settings, programs)
            if while_process is not None:
                _watch(cluster, while_process)
            _start_node(cluster)
        except BaseException:
            _clear(cluster)
            raise
    say(f"`{cluster.name}` is ready: Kubernetes {programs.version}, after {time.monotonic() - began:.1f} s; {cluster.directory}")


def down(cluster: Cluster) -> None:
    machine.require_root()
    with _locked(cluster):
        _clear(cluster)


def restart_node(cluster: Cluster) -> None:
    """As if the machine lost its power and came back: all is killed at once, what is on disk stays."""
    machine.require_root()
    programs_of(cluster)
    began = time.monotonic()
    with _locked(cluster):
        cgroups.kill(cluster.namespace, "programs")
        cgroups.kill(cluster.namespace, "kubepods")
        cgroups.remove(cluster.namespace, "kubepods")
        shutil.rmtree(cluster.own("/run"))
        network.restart(cluster)
        _start_node(cluster)
    say(f"`{cluster.name}` is ready again after {time.monotonic() - began:.1f} s")


def _prepare(cluster: Cluster, settings: Settings, programs: machine.Programs) -> None:
    cluster.directory.mkdir(mode=0o700, parents=True)
    cluster.logs.mkdir()
    programs.write(cluster.programs)
    credentials.write(cluster)
    configuration.write(cluster, programs, settings.sync_frequency)
    cgroups.create(cluster.namespace)
    network.create(cluster)


def _start_node(cluster: Cluster) -> None:
    """Runs `node` of this program in the node's namespaces: network by name, mounts new."""
    itself = [sys.executable, "-B", str(ROOT / "scripts/cluster"), "node", "--name", cluster.name]
    in_new_mounts = ["unshare", "--mount", "--propagation", "unchanged", *itself]
    if subprocess.run(network.entered(cluster, *in_new_mounts)).returncode != 0:
        raise Failure(f"the node of `{cluster.name}` did not come up; its own words are above")


def _clear(cluster: Cluster) -> None:
    """Leaves nothing of a cluster, nor minds what is not there."""
    if cgroups.exists(cluster.namespace):
        cgroups.kill(cluster.namespace)
        cgroups.remove(cluster.namespace)
    network.delete(cluster)
    if cluster.directory.exists():
        shutil.rmtree(cluster.directory)


@contextmanager
def _locked(cluster: Cluster) -> Iterator[None]:
    """One command at a time changes a cluster. The file goes with whoever held it last."""
    path = base_directory() / f".{cluster.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    try:
        yield
    finally:
        path.unlink()
        file.close()


def _watch(cluster: Cluster, process: int) -> None:
    """Leaves a process behind that takes the cluster down when another ends."""
    itself = [sys.executable, "-B", str(ROOT / "scripts/cluster"), "watch", "--name", cluster.name, str(process)]
    with (cluster.logs / "watch.log").open("wb") as log:
        subprocess.Popen(itself, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def watch(cluster: Cluster, process: int) -> None:
    """Is killed itself, with all else in the cgroup, by whoever takes the cluster down."""
    cgroups.join(cluster.namespace, "watch")
    try:
        handle = os.pidfd_open(process)
        select.select([handle], [], [])
    except ProcessLookupError:
        pass  # ended already
    cgroups.leave()
    down(cluster)


def directories() -> list[Path]:
    base = base_directory()
    return sorted(path for path in base.iterdir() if path.is_dir()) if base.exists() else []
