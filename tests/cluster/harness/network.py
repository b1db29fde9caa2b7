"""The network namespace that a cluster lives in. No packet leaves it."""

from __future__ import annotations

import json
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
    _configure(cluster)


def restart(cluster: Cluster) -> None:
    """What a machine has forgotten when it starts again.

    The namespace itself stays: commands that run in it would be left in one
    that nothing is in any more.
    """
    _inside(cluster, "nft", "flush", "ruleset")
    for link in json.loads(_inside(cluster, "ip", "-json", "link", "show")):
        if link["ifname"] != "lo":
            # A pod's goes by itself when the pod's own namespace does.
            subprocess.run(entered(cluster, "ip", "link", "delete", link["ifname"]), stderr=subprocess.DEVNULL)
    _configure(cluster)


def _configure(cluster: Cluster) -> None:
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


def _inside(cluster: Cluster, *command: str) -> str:
    return _run(*entered(cluster, *command))


def _run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"`{' '.join(command)}` failed: {done.stdout.strip()}")
    return done.stdout
