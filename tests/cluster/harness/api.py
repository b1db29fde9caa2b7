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

    def node_is_ready(self, name: str) -> bool:
        node = self._object(f"/api/v1/nodes/{name}")
        conditions = node.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def deployment_is_available(self, namespace: str, name: str) -> bool:
        deployment = self._object(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
        return deployment.get("status", {}).get("availableReplicas", 0) > 0

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
