"""The certificates and keys of a cluster, as kubeadm would make them."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Iterable

from .failure import Failure
from .layout import API_PORT, API_SERVICE_ADDRESS, CLUSTER_DOMAIN, NODE_ADDRESS, NODE_NAME, Cluster

DAYS = "30"
AUTHORITIES = {"ca": "kubernetes", "front-proxy-ca": "kubernetes-front-proxy"}
# Kubernetes reads the user from the common name, the groups from organizations.
USERS = {
    "admin": "/O=system:masters/CN=admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kube-proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
}
API_SERVER_NAMES = [
    f"IP:{NODE_ADDRESS}",
    f"IP:{API_SERVICE_ADDRESS}",
    "IP:127.0.0.1",
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}",
]


def write(cluster: Cluster) -> None:
    directory = cluster.credentials
    directory.mkdir(mode=0o700)
    # Without a configuration openssl reads the machine's, which adds extensions.
    (directory / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")
    with ThreadPoolExecutor() as pool:
        _finish(pool.submit(_authority, directory, *each) for each in AUTHORITIES.items())
        made = [pool.submit(_certificate, directory, user, subject, "clientAuth") for user, subject in USERS.items()]
        made.append(pool.submit(_api_server, directory))
        made.append(pool.submit(_service_account_key, directory))
        _finish(made)
    for user in USERS:
        _kubeconfig(directory, user)
    (directory / "admin.kubeconfig").rename(cluster.kubeconfig)


def _finish(futures: Iterable[Future[None]]) -> None:
    for future in list(futures):
        future.result()


def _authority(directory: Path, name: str, common_name: str) -> None:
    extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign", "subjectKeyIdentifier=hash"]
    _request(directory, name, f"/CN={common_name}", extensions)


def _api_server(directory: Path) -> None:
    _certificate(directory, "api-server", "/CN=kube-apiserver", "serverAuth", API_SERVER_NAMES)
    _certificate(directory, "api-server-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client", "clientAuth")
    _certificate(directory, "front-proxy", "/CN=front-proxy-client", "clientAuth", authority="front-proxy-ca")
    _certificate(directory, "kubelet-server", f"/CN=system:node:{NODE_NAME}", "serverAuth", [f"IP:{NODE_ADDRESS}", f"DNS:{NODE_NAME}"])


def _certificate(
    directory: Path, name: str, subject: str, usage: str, names: list[str] | None = None, authority: str = "ca"
) -> None:
    extensions = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]
    if names:
        extensions.append(f"subjectAltName={','.join(names)}")
    issuer = ["-CA", str(directory / f"{authority}.crt"), "-CAkey", str(directory / f"{authority}.key")]
    _request(directory, name, subject, extensions, issuer)


def _request(directory: Path, name: str, subject: str, extensions: list[str], issuer: Iterable[str] = ()) -> None:
    command = ["openssl", "req", "-x509", "-config", str(directory / "openssl.cnf"), "-subj", subject, "-days", DAYS]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *issuer]
    command += ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.crt")]
    for extension in extensions:
        command += ["-addext", extension]
    _openssl(command)


def _service_account_key(directory: Path) -> None:
    private, public = str(directory / "service-account.key"), str(directory / "service-account.pub")
    _openssl(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private])
    _openssl(["openssl", "pkey", "-in", private, "-pubout", "-out", public])


def _openssl(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failure(f"openssl (3.0 or newer is needed) made no certificate: {done.stdout.strip()}")


def _kubeconfig(directory: Path, user: str) -> None:
    authority = str(directory / "ca.crt")
    identity = {"client-certificate": str(directory / f"{user}.crt"), "client-key": str(directory / f"{user}.key")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "bulkhead", "cluster": {"server": f"https://{NODE_ADDRESS}:{API_PORT}", "certificate-authority": authority}}
        ],
        "users": [{"name": user, "user": identity}],
        "contexts": [{"name": "bulkhead", "context": {"cluster": "bulkhead", "user": user}}],
        "current-context": "bulkhead",
    }
    # JSON is YAML.
    (directory / f"{user}.kubeconfig").write_text(json.dumps(content, indent=2))
