"""The few questions that are asked of the API server while a node comes up."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from .layout import API_PORT, NODE_ADDRESS, Cluster

SECONDS = 5


class Api:
    """Works in the cluster's network namespace, with the administrator's certificate."""

    def __init__(self, cluster: Cluster) -> None:
        credentials = cluster.credentials
        self._tls = ssl.create_default_context(cafile=str(credentials / "ca.crt"))
        self._tls.load_cert_chain(credentials / "admin.crt", credentials / "admin.key")

    def is_ready(self) -> bool:
        return self._get("/readyz") is not None

    def heartbeat(self, node: str) -> str | None:
        """When the kubelet said last that it takes pods; none where it says that it does not."""
        conditions = self._object(f"/api/v1/nodes/{node}").get("status", {}).get("conditions", [])
        ready = (each["lastHeartbeatTime"] for each in conditions if each["type"] == "Ready" and each["status"] == "True")
        return next(ready, None)

    def running_containers(self) -> set[str]:
        """The containers that run, as far as it was told."""
        pods = self._object("/api/v1/pods").get("items", [])
        parts = ("initContainerStatuses", "containerStatuses")
        statuses = [each for pod in pods for part in parts for each in pod.get("status", {}).get(part, [])]
        return {each["containerID"] for each in statuses if "running" in each["state"]}

    def has_ready_pod(self, namespace: str, label: str) -> bool:
        pods = self._object(f"/api/v1/namespaces/{namespace}/pods?labelSelector={label}").get("items", [])
        conditions = [each for pod in pods for each in pod.get("status", {}).get("conditions", [])]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def has_default_service_account(self, namespace: str) -> bool:
        return bool(self._object(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"))

    def _object(self, path: str) -> dict[str, Any]:
        """Empty where there is none, or not yet."""
        body = self._get(path)
        return json.loads(body) if body else {}

    def _get(self, path: str) -> bytes | None:
        connection = http.client.HTTPSConnection(NODE_ADDRESS, API_PORT, context=self._tls, timeout=SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            return body if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None  # not there yet
        finally:
            connection.close()
