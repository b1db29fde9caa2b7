"""What each program of a node is told: its configuration file and its command line.

A node has a /run, a /var/lib and a /var/log of its own (see node.py), so the
programs keep things where they do on every node.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .layout import (
    API_PORT,
    CLUSTER_DOMAIN,
    DNS_ADDRESS,
    NODE_ADDRESS,
    NODE_NAME,
    PAUSE_IMAGE,
    POD_BRIDGE,
    POD_NETWORK,
    SERVICE_NETWORK,
    Cluster,
)
from .machine import NEWEST, Programs

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


def _feature_gates(programs: Programs) -> dict[str, bool]:
    """Beta and off by default: trust bundles of the whole cluster, and, of the version that
    we know, certificates that kubelet mounts."""
    gates = ["ClusterTrustBundle", "ClusterTrustBundleProjection"]
    if programs.version.startswith(f"v{NEWEST}."):
        gates.append("PodCertificateRequest")
    return dict.fromkeys(gates, True)


def write(cluster: Cluster, programs: Programs, sync_frequency: str | None) -> None:
    directory = cluster.configuration
    directory.mkdir()
    (directory / "resolv.conf").write_text("# Names outside the cluster are nobody's here.\n")
    (directory / "containerd.toml").write_text(_containerd(directory, programs))
    (directory / "cni").mkdir()
    files = {
        "cni/10-bridge.conflist": _cni(),
        "kubelet.json": _kubelet(cluster, programs, sync_frequency),
        "kube-proxy.json": _kube_proxy(cluster),
        "audit.json": _audit(),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2))


def _containerd(directory: Path, programs: Programs) -> str:
    # containerd 1.6 and 2 both read version 2.
    return f"""version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{programs.cni_plugins}"
    conf_dir = "{directory / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{programs.snapshotter}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def _cni() -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": POD_BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        # A pod reaches itself through a Service.
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": POD_NETWORK}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            # Forgotten when the node goes down, with the pods that had them.
            "dataDir": "/run/cni",
        },
    }
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


def _kubelet(cluster: Cluster, programs: Programs, sync_frequency: str | None) -> dict[str, Any]:
    credentials = cluster.credentials
    content: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": str(cluster.configuration / "resolv.conf"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(credentials / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(credentials / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(credentials / "kubelet-server.key"),
        "featureGates": _feature_gates(programs),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cluster.namespace}",
        "failCgroupV1": False,
        "failSwapOn": False,
        # As many as the pod network has addresses for, nearly.
        "maxPods": 240,
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        # The disk and the memory are the machine's, which has other uses for them.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100,
    }
    if sync_frequency:
        content["syncFrequency"] = sync_frequency
    return content


def _kube_proxy(cluster: Cluster) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_NETWORK,
        "clientConnection": {"kubeconfig": str(cluster.credentials / "kube-proxy.kubeconfig")},
        # The size of this table is the whole machine's to set.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def _audit() -> dict[str, Any]:
    """Who asked for what, of requests that change something or were made by somebody."""
    quiet = [
        {"level": "None", "resources": [{"group": "coordination.k8s.io"}, {"group": "", "resources": ["events"]}]},
        {"level": "None", "verbs": ["get", "list", "watch"], "userGroups": ["system:nodes"]},
        {"level": "None", "verbs": ["get", "list", "watch"], "users": ["system:apiserver", "system:kube-*"]},
    ]
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [*quiet, {"level": "Metadata"}],
    }


def commands(cluster: Cluster, programs: Programs) -> dict[str, list[str]]:
    """The command line of each program, in the order in which they are started."""
    return {
        "containerd": [programs.path("containerd"), "--config", str(cluster.configuration / "containerd.toml")],
        "etcd": _etcd_command(cluster, programs),
        "kube-apiserver": _api_server_command(cluster, programs),
        "kube-controller-manager": _controller_manager_command(cluster, programs),
        "kube-scheduler": [
            programs.path("kube-scheduler"),
            f"--kubeconfig={cluster.credentials / 'kube-scheduler.kubeconfig'}",
            "--leader-elect=false",
        ],
        "kubelet": [
            programs.path("kubelet"),
            f"--config={cluster.configuration / 'kubelet.json'}",
            f"--kubeconfig={cluster.credentials / 'kubelet.kubeconfig'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_ADDRESS}",
        ],
        "kube-proxy": [
            programs.path("kube-proxy"),
            f"--config={cluster.configuration / 'kube-proxy.json'}",
            f"--hostname-override={NODE_NAME}",
        ],
    }


def _etcd_command(cluster: Cluster, programs: Programs) -> list[str]:
    return [
        programs.path("etcd"),
        f"--data-dir={cluster.etcd}",
        # Durability is for those who have something to lose.
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-client-urls=unix:///run/etcd.sock",
        "--listen-peer-urls=unix:///run/etcd-peer.sock",
        # It must have a port, and nobody uses it: there is one member.
        "--advertise-client-urls=http://localhost:2379",
    ]


def _api_server_command(cluster: Cluster, programs: Programs) -> list[str]:
    credentials = cluster.credentials
    return [
        programs.path("kube-apiserver"),
        "--etcd-servers=unix:///run/etcd.sock",
        f"--advertise-address={NODE_ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--tls-cert-file={credentials / 'api-server.crt'}",
        f"--tls-private-key-file={credentials / 'api-server.key'}",
        f"--client-ca-file={credentials / 'ca.crt'}",
        f"--kubelet-certificate-authority={credentials / 'ca.crt'}",
        f"--kubelet-client-certificate={credentials / 'api-server-kubelet.crt'}",
        f"--kubelet-client-key={credentials / 'api-server-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={credentials / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={credentials / 'front-proxy.crt'}",
        f"--proxy-client-key-file={credentials / 'front-proxy.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={credentials / 'service-account.pub'}",
        f"--service-account-signing-key-file={credentials / 'service-account.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--feature-gates={','.join(f'{gate}=true' for gate in _feature_gates(programs))}",
        "--runtime-config=certificates.k8s.io/v1beta1=true",
        "--allow-privileged=true",
        f"--audit-policy-file={cluster.configuration / 'audit.json'}",
        f"--audit-log-path={cluster.logs / 'audit.log'}",
    ]


def _controller_manager_command(cluster: Cluster, programs: Programs) -> list[str]:
    credentials = cluster.credentials
    return [
        programs.path("kube-controller-manager"),
        f"--kubeconfig={credentials / 'kube-controller-manager.kubeconfig'}",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--root-ca-file={credentials / 'ca.crt'}",
        f"--service-account-private-key-file={credentials / 'service-account.key'}",
        f"--cluster-signing-cert-file={credentials / 'ca.crt'}",
        f"--cluster-signing-key-file={credentials / 'ca.key'}",
    ]
