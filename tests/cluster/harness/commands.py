"""What a person types. `scripts/cluster` is this."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from . import cgroups, images, lifecycle, machine, network, node
from .failure import Failure
from .layout import NODE_ADDRESS, POD_BRIDGE, Cluster

DESCRIPTION = """\
Runs a real Kubernetes node on this machine, in a network namespace with no way
out. docs/cluster.md shows it at work.

  scripts/cluster up                      starts one; Ready in seconds, once built
  scripts/cluster load target/images/*.tar
  scripts/cluster kubectl get pods -A     the cluster's own kubectl; helm likewise
  scripts/cluster exec -- curl 203.0.113.7    anything, beside the node's programs
  scripts/cluster down                    leaves nothing of it
"""


def main() -> None:
    os.umask(0o022)
    machine.extend_path()
    # An end that is asked for runs what is to be done at the end.
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, lambda number, _: sys.exit(128 + number))
    arguments = _parser().parse_args(_with_separator(sys.argv[1:]))
    try:
        arguments.act(arguments)
    except Failure as failure:
        lifecycle.say(str(failure))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/cluster", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, act, help: str | None = None) -> argparse.ArgumentParser:
        # Without a help line it is not listed: this program's own use.
        added = commands.add_parser(name, **({"help": help, "description": help} if help else {}))
        added.add_argument("--name", default=_default_name(), help="which cluster; two run beside each other (default: %(default)s)")
        added.set_defaults(act=act)
        return added

    def up_options(added: argparse.ArgumentParser) -> None:
        added.add_argument("--kubernetes", default=machine.VERSIONS[0], help=f"{' or '.join(machine.VERSIONS)} (default: %(default)s)")
        added.add_argument("--sync-frequency", metavar="5s", help="how often the kubelet looks again at each pod, and so at its ConfigMaps (Kubernetes' own: 1m)")

    added = command("up", _up, "start a cluster, and wait until it takes pods")
    up_options(added)
    added.add_argument("--while-pid", type=int, metavar="PID", help="take it down by itself when this process ends")
    command("down", _down, "end a cluster and remove all that belonged to it")
    added = command("run", _run, "start a cluster, run a command in it, end it whatever happened")
    up_options(added)
    added.add_argument("line", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    added = command("load", _load, "give images to the node, from docker or OCI archives")
    added.add_argument("archives", nargs="+", type=Path, metavar="IMAGE.tar")
    for tool in ("kubectl", "helm"):
        command(tool, _tool, f"run {tool} on the cluster").add_argument("line", nargs=argparse.REMAINDER, metavar="…")
    added = command("exec", _exec, "run a command in the cluster's network namespace, with KUBECONFIG set")
    added.add_argument("line", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    added = command("capture", _capture, "write what pods send into a file, until Ctrl-C or SIGTERM")
    added.add_argument("file", metavar="FILE.pcap")
    added.add_argument("filter", nargs="*", help="in tcpdump's language, such as: port 8080")
    command("restart-node", _restart_node, "kill everything at once, as a power cut would, and start it again")
    command("status", _status, "say which clusters there are")
    command("node", _node)
    command("watch", _watch).add_argument("process", type=int)
    return parser


def _with_separator(line: list[str]) -> list[str]:
    """What follows `kubectl` or `helm` is theirs, options too, but for our `--name`."""
    if line[:1] not in (["kubectl"], ["helm"]):
        return line
    ours = 3 if line[1:2] == ["--name"] else 1
    return [*line[:ours], "--", *line[ours:]]


def _default_name() -> str:
    """A command inside a cluster means that one."""
    return Path(os.environ.get("BULKHEAD_CLUSTER", "bulkhead")).name


def _settings(arguments: argparse.Namespace) -> lifecycle.Settings:
    return lifecycle.Settings(kubernetes=arguments.kubernetes, sync_frequency=arguments.sync_frequency)


def _up(arguments: argparse.Namespace) -> None:
    lifecycle.up(Cluster(arguments.name), _settings(arguments), arguments.while_pid)


def _down(arguments: argparse.Namespace) -> None:
    lifecycle.down(Cluster(arguments.name))


def _restart_node(arguments: argparse.Namespace) -> None:
    lifecycle.restart_node(Cluster(arguments.name))


def _run(arguments: argparse.Namespace) -> None:
    cluster, line = Cluster(arguments.name), _line(arguments)
    # Also taken down where this process is killed and can do nothing any more.
    lifecycle.up(cluster, _settings(arguments), os.getpid())
    # What the command starts and leaves behind ends with the cluster.
    join = lambda: cgroups.join(cluster.namespace, "guests")
    try:
        done = subprocess.run(network.entered(cluster, *line), env=_environment(cluster), preexec_fn=join)
    finally:
        lifecycle.down(cluster)
    sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def _load(arguments: argparse.Namespace) -> None:
    machine.require_root()
    cluster = Cluster(arguments.name)
    programs = lifecycle.programs_of(cluster)
    for archive in arguments.archives:
        lifecycle.say(images.load(cluster, archive, programs.snapshotter))


def _tool(arguments: argparse.Namespace) -> None:
    _become(Cluster(arguments.name), [arguments.command, *arguments.line[1:]])


def _exec(arguments: argparse.Namespace) -> None:
    _become(Cluster(arguments.name), _line(arguments))


def _capture(arguments: argparse.Namespace) -> None:
    # Each packet is in the file as soon as it was seen.
    options = ["--interface", POD_BRIDGE, "--packet-buffered", "--snapshot-length", "0", "-w", arguments.file]
    _become(Cluster(arguments.name), ["tcpdump", "-n", "--immediate-mode", *options, *arguments.filter])


def _become(cluster: Cluster, line: list[str]) -> None:
    """Keeps the process id, and so the signals that are sent to it."""
    machine.require_root()
    command = network.entered(cluster, *line)
    os.execvpe(command[0], command, _environment(cluster))


def _environment(cluster: Cluster) -> dict[str, str]:
    programs = lifecycle.programs_of(cluster)
    path = f"{programs.kubernetes}:{programs.helm.parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "KUBECONFIG": str(cluster.kubeconfig),
        # By default the kinds that kubectl found are kept by the API server's address, and
        # all clusters have the same.
        "KUBECACHEDIR": str(cluster.directory / "kube-cache"),
        "BULKHEAD_CLUSTER": str(cluster.directory),
    }


def _line(arguments: argparse.Namespace) -> list[str]:
    line = arguments.line[1:] if arguments.line[:1] == ["--"] else arguments.line
    if not line:
        raise Failure(f"say what to run: scripts/cluster {arguments.command} -- COMMAND")
    return line


def _status(arguments: argparse.Namespace) -> None:
    machine.require_root()
    names = [directory.name for directory in lifecycle.directories()]
    for cluster in map(Cluster, names):
        if cgroups.processes(cluster.namespace, "programs") and cluster.programs.exists():
            state = f"up, Kubernetes {lifecycle.programs_of(cluster).version}"
        else:
            state = "not up; `down` removes what is left"
        print(f"{cluster.name}  {state}  node {NODE_ADDRESS} in network namespace {cluster.namespace}  {cluster.directory}")
    if not names:
        print("no cluster is up; `scripts/cluster up` starts one")


def _node(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.name)
    node.start(cluster, lifecycle.programs_of(cluster))


def _watch(arguments: argparse.Namespace) -> None:
    lifecycle.watch(Cluster(arguments.name), arguments.process)
