"""What each of the nodes that are compared gets in the cluster."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SERVICES = HERE.parent / "services"
sys.path.insert(0, str(HERE.parent / "end-to-end"))

from bed import until  # noqa: E402
from deployed import FINALIZER_GONE, kubectl  # noqa: E402

RBAC = "rbac.authorization.k8s.io"
DISPATCHED = re.compile(
    r'^apiserver_flowcontrol_dispatched_requests_total\{flow_schema="([^"]*)".*\} (\S+)$', re.M)


def push(archive: Path, name: str) -> str:
    """Put an image into the registry from which the cluster fetches; its name there."""
    done = subprocess.run(
        [SERVICES / "kubernetes.sh", "push", os.environ["V6_KUBERNETES_WORK"], archive, name],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise AssertionError(f"kubernetes.sh push: {done.stderr}")
    return f"{os.environ['V6_REGISTRY_OPEN']}/{name}"


def server() -> tuple[str, str]:
    """The API server's address, and its authority in PEM."""
    (one,) = json.loads(kubectl("config", "view", "--minify", "--raw", "--flatten",
                                   "-o", "json"))["clusters"]
    authority = base64.b64decode(one["cluster"]["certificate-authority-data"]).decode()
    return one["cluster"]["server"], authority


class Place:
    """A namespace with a node's account in it.

    The API server counts requests by FlowSchema. The account gets one of its own, of the same
    priority as all accounts have, so that its requests are told from everybody else's. It does not
    count what it never holds back: logs, and forwarded connections.
    """

    ACCOUNT = "v6-node"

    def __init__(self, name: str) -> None:
        self.name = name
        # What is in the namespace beside runs.
        self.standing: set[str] = set()

    def make(self, *rights: dict, security: str) -> None:
        """`security` is the level of Pod Security that the namespace has."""
        label = {"pod-security.kubernetes.io/enforce": security}
        kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace",
             "metadata": {"name": self.name, "labels": label}}, *rights, self.flow()]})

    def flow(self) -> dict:
        account = {"kind": "ServiceAccount",
                   "serviceAccount": {"name": self.ACCOUNT, "namespace": self.name}}
        everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
                      "clusterScope": True}
        return {
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": self.name},
            "spec": {"matchingPrecedence": 500, "distinguisherMethod": {"type": "ByUser"},
                     "priorityLevelConfiguration": {"name": "workload-low"},
                     "rules": [{"subjects": [account], "resourceRules": [everything],
                                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]},
        }

    def token(self) -> str:
        return kubectl("create", "token", self.ACCOUNT, "--namespace", self.name,
                       "--duration", "12h").strip()

    def requests(self) -> float:
        """How many of the account the API server has answered so far."""
        return sum(float(count) for flow, count in DISPATCHED.findall(
            kubectl("get", "--raw", "/metrics")) if flow == self.name)

    def objects(self) -> set[str]:
        return set(kubectl("get", "jobs,pods", "--namespace", self.name, "-o", "name").split())

    def runs(self) -> set[str]:
        """The jobs and pods of runs."""
        return self.objects() - self.standing

    def close(self) -> None:
        for kind in ("flowschema", "clusterrolebinding", "clusterrole"):
            kubectl("delete", kind, self.name, "--ignore-not-found")
        kubectl("delete", "namespace", self.name, "--ignore-not-found", "--wait=false")

        def gone() -> bool:
            # Of runs that a node which was ended early has not removed.
            for name in self.objects():
                with contextlib.suppress(AssertionError):
                    kubectl("patch", name, "--namespace", self.name, "--type", "merge",
                            "--patch", json.dumps(FINALIZER_GONE))
            return not kubectl("get", "namespace", self.name, "--ignore-not-found", "-o", "name")

        until(gone, 180, f"the namespace {self.name} is gone")


def account(place: Place, rules: list[dict], everywhere: list[dict]) -> list[dict[str, Any]]:
    """A service account with rights in its namespace, and in the whole cluster."""
    name, space = place.ACCOUNT, place.name
    who = [{"kind": "ServiceAccount", "name": name, "namespace": space}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount",
         "metadata": {"name": name, "namespace": space}},
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "rules": rules,
         "metadata": {"name": name, "namespace": space}},
        {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "subjects": who,
         "metadata": {"name": name, "namespace": space},
         "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name}},
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "rules": everywhere,
         "metadata": {"name": space}},
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "subjects": who,
         "metadata": {"name": space},
         "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": space}},
    ]
