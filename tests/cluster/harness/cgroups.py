"""The cgroup that holds all processes of a cluster, of containers too.

A process is in it or is not, whoever started it and whatever became of that
one. So nothing need be recorded to find all of them again, and no number of a
process is ever taken for another's.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .failure import Failure

MOUNT = Path("/sys/fs/cgroup")
# Which controllers the kubelet and runc ask for.
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
# Beside `kubepods`, which the kubelet makes: the node's programs, who watches
# that the cluster does not outlive its user, and the user's own command.
PARTS = ("programs", "watch", "guests")
SECONDS_TO_DIE = 30


def is_unified() -> bool:
    """Whether this machine has cgroup v2 alone, not v1, nor both beside each other."""
    return (MOUNT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Where a cgroup has to be made to be there for every controller."""
    if is_unified():
        return [MOUNT]
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    # Beside v1 there may be a v2 without controllers, which runc uses too.
    return [Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2")]


def _process_hierarchy() -> Path:
    """The hierarchy by which processes are found."""
    if is_unified():
        return MOUNT
    for hierarchy in hierarchies():
        if "pids" in hierarchy.name.split(","):
            return hierarchy
    raise Failure("this machine has no `pids` cgroup controller, which the kubelet needs too; mount cgroups at /sys/fs/cgroup")


def create(name: str) -> None:
    for hierarchy in hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        if is_unified():
            _delegate(hierarchy)
            _delegate(group)
        # A v1 cpuset is empty at first, and no process can be put into it.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not is_unified() and (group / file).exists():
                (group / file).write_text((hierarchy / file).read_text())
    for part in PARTS:
        (_process_hierarchy() / name / part).mkdir(exist_ok=True)


def _delegate(group: Path) -> None:
    available = (group / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{each}" for each in CONTROLLERS if each in available)
    try:
        (group / "cgroup.subtree_control").write_text(wanted)
    except OSError as error:
        raise Failure(
            f"cannot hand out cgroup controllers in {group}: {error}; in a container, run it with a cgroup namespace"
            " of its own whose root holds no process"
        ) from error


def join(name: str, part: str) -> None:
    """Puts this process, and so all that it starts, into one of the parts."""
    (_process_hierarchy() / name / part / "cgroup.procs").write_text(str(os.getpid()))


def leave() -> None:
    (_process_hierarchy() / "cgroup.procs").write_text(str(os.getpid()))


def processes(name: str, part: str = "") -> set[int]:
    """The processes in a cluster's cgroup or a part of it, and below."""
    found: set[int] = set()
    for directory, _, _ in os.walk(_process_hierarchy() / name / part):
        try:
            found.update(map(int, (Path(directory) / "cgroup.procs").read_text().split()))
        except OSError:
            continue  # went away meanwhile
    return found


def kill(name: str, part: str = "") -> None:
    """Kills all of them, until none is left."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while remaining := processes(name, part):
        if time.monotonic() > deadline:
            raise Failure(f"processes {sorted(remaining)} of cgroup {name} do not die; `ps -o pid,stat,wchan,cmd` may say why")
        for process in remaining:
            _kill_member(process, name)
        time.sleep(0.01)


def _kill_member(process: int, name: str) -> None:
    """Kills a process that is in the cgroup, not one that got its number since."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        membership = Path(f"/proc/{process}/cgroup").read_text()
        if any(f"{line}/".split(":", 2)[2].startswith(f"/{name}/") for line in membership.splitlines()):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        pass  # it went by itself
    finally:
        os.close(handle)


def remove(name: str, part: str = "") -> None:
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name / part, topdown=False):
            _remove_empty(Path(directory))


def _remove_empty(group: Path) -> None:
    """A cgroup stays busy for a moment after its last process was reaped."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while True:
        try:
            return group.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failure(f"cannot remove the cgroup {group}: {error}") from error
        time.sleep(0.01)


def exists(name: str) -> bool:
    return any((hierarchy / name).exists() for hierarchy in hierarchies())
