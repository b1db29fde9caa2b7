"""The network namespace that a cluster lives in. No packet leaves it."""

from __future__ import annotations

import subprocess

from .failure import Failure
from .layout import NODE_ADDRESS, Cluster

# The node's interface. A bridge that nothing is attached to leads nowhere, and
# is there where the kernel has no `dummy` devices.
INTERFACE = "node0"
# Nobody has this address. Programs look for a default route to learn which
# address of the machine is its own.
GATEWAY = "192.0.2.254"


def create(cluster: Cluster) -> None:
    _run("ip", "netns", "add", cluster.namespace)
    _inside(cluster, "ip", "link", "set", "lo", "up")
    _inside(cluster, "ip", "link", "add", INTERFACE, "type", "bridge")
    _inside(cluster, "ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", INTERFACE)
    _inside(cluster, "ip", "link", "set", INTERFACE, "up")
    _inside(cluster, "ip", "route", "add", "default", "via", GATEWAY, "dev", INTERFACE)
    # What goes from pod to pod over their bridge must pass the rules that make
    # a Service of it, or the answer comes from a stranger.
    _inside(cluster, "sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")


def delete(cluster: Cluster) -> None:
    if cluster.namespace_path.exists():
        _run("ip", "netns", "delete", cluster.namespace)


def entered(cluster: Cluster, *command: str) -> list[str]:
    """The command line that runs a command there.

    Not `ip netns exec`, which mounts a new /sys, where the kubelet finds no
    cgroups.
    """
    return ["nsenter", f"--net={cluster.namespace_path}", "--", *command]


def _inside(cluster: Cluster, *command: str) -> None:
    _run(*entered(cluster, *command))


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"`{' '.join(command)}` failed: {done.stdout.strip()}")
