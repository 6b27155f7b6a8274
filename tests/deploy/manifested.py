"""What a manifest of ours may say: the fields of Kubernetes' objects that are used here.

Kubernetes takes a field that it does not know for a warning, and a probe that is misspelt for no
probe. The schemas of all its versions are a package of 17,000 files, too much for every clone; what
stands here was compared with it (docs/decisions/0027-deployments-checked-without-a-runtime.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from perdure.api.operations import OPERATIONS
from tests.deploy.files import READ, SECRET, containers

STRINGS: Final = {"*": str}
LABELS: Final = {"matchLabels": STRINGS}
HTTP: Final = {"path": str, "port": str}
PROBE: Final = {
    "httpGet": HTTP,
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
}
SECRET_REFERENCE: Final = {"name": str, "key": str, "optional": bool}
CONTAINER: Final = {
    "name": str,
    "image": str,
    "args": [str],
    "env": [
        {
            "name": str,
            "value": str,
            "valueFrom": {"secretKeyRef": SECRET_REFERENCE, "fieldRef": {"fieldPath": str}},
        }
    ],
    "envFrom": [{"configMapRef": {"name": str}}],
    "ports": [{"name": str, "containerPort": int}],
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "lifecycle": {"preStop": {"exec": {"command": [str]}}},
    "resources": {"requests": STRINGS, "limits": STRINGS},
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"drop": [str]},
    },
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD: Final = {
    "automountServiceAccountToken": bool,
    "enableServiceLinks": bool,
    "terminationGracePeriodSeconds": int,
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "fsGroup": int,
        "seccompProfile": {"type": str},
    },
    "topologySpreadConstraints": [
        {"topologyKey": str, "maxSkew": int, "whenUnsatisfiable": str, "labelSelector": LABELS}
    ],
    "containers": [CONTAINER],
    "volumes": [{"name": str, "emptyDir": {}}],
}
PORT: Final = {"name": str, "port": int, "targetPort": str}
SPECS: Final[Mapping[tuple[str, str], Any]] = {
    ("apps/v1", "Deployment"): {
        "replicas": int,
        "selector": LABELS,
        "strategy": {"rollingUpdate": {"maxSurge": int, "maxUnavailable": int}},
        "template": {"metadata": {"labels": STRINGS}, "spec": POD},
    },
    ("policy/v1", "PodDisruptionBudget"): {"maxUnavailable": int, "selector": LABELS},
    ("v1", "Service"): {"selector": STRINGS, "ports": [PORT]},
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "podSelector": LABELS,
        "policyTypes": [str],
        "ingress": [{"ports": [{"port": str}]}],
    },
}
METADATA: Final = {"name": str, "namespace": str, "labels": STRINGS}
KUSTOMIZATION: Final = {
    "apiVersion": str,
    "kind": str,
    "namespace": str,
    "resources": [str],
    "configMapGenerator": [{"name": str, "literals": [str]}],
    "images": [{"name": str, "newName": str, "newTag": str, "digest": str}],
}
PUBLIC: Final = {one.path for one in OPERATIONS if one.scope is None}
LEAVING_SECONDS: Final = 35
"""What a server or a worker may need between SIGTERM and its end."""


def misfits(thing: Any, schema: Any, where: str) -> Iterator[str]:
    """Say what in a document is not in the schema, or of another type."""
    if isinstance(schema, dict):
        if not isinstance(thing, dict):
            yield f"{where}: {thing!r} is no mapping"
            return
        for key, value in thing.items():
            inside = schema.get(key, schema.get("*"))
            if inside is None:
                yield f"{where}.{key}: not a field that is used here"
            else:
                yield from misfits(value, inside, f"{where}.{key}")
    elif isinstance(schema, list):
        if not isinstance(thing, list):
            yield f"{where}: {thing!r} is no list"
            return
        for at, value in enumerate(thing):
            yield from misfits(value, schema[0], f"{where}[{at}]")
    elif type(thing) is not schema:
        yield f"{where}: {thing!r} is no {schema.__name__}"


def shape(document: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with a document's fields."""
    if document.get("kind") == "Kustomization":
        yield from misfits(document, KUSTOMIZATION, "kustomization")
        return
    kind, name = document.get("kind"), document.get("metadata", {}).get("name")
    where = f"{kind} {name}"
    yield from misfits(document.get("metadata"), METADATA, f"{where}: metadata")
    if kind == "Namespace":
        return
    key = (document.get("apiVersion", ""), kind or "")
    if key not in SPECS:
        yield f"{where}: {key} is not known here"
    else:
        yield from misfits(document.get("spec"), SPECS[key], f"{where}: spec")


def problems(documents: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with all manifests together."""
    by_kind: dict[str, dict[str, Any]] = {}
    for each in documents:
        by_kind.setdefault(each["kind"], {})[each.get("metadata", {}).get("name", "")] = each
    deployments = by_kind.get("Deployment", {})
    found = [problem for each in documents for problem in shape(each)]
    if found:
        return found
    for name, one in deployments.items():
        wrong = (*_deployment(one), *_pod(one), *_covered(one, by_kind))
        found += [f"{name}: {problem}" for problem in wrong]
    [kustomization] = by_kind["Kustomization"].values()
    return [*found, *_service(by_kind), *_kustomized(kustomization, documents)]


def labels(deployment: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a deployment's pods."""
    found: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return found


def _deployment(deployment: Mapping[str, Any]) -> Iterator[str]:
    spec = deployment["spec"]
    if spec["selector"]["matchLabels"] != labels(deployment):
        yield "its selector does not select its pods"
    if spec["replicas"] < 2:
        yield "one pod alone is not there while it is moved"
    for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
        if spread["labelSelector"]["matchLabels"] != labels(deployment):
            yield "its spread counts other pods"


def _pod(deployment: Mapping[str, Any]) -> Iterator[str]:
    pod = deployment["spec"]["template"]["spec"]
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("runAsUser") != 10001:
        yield "it may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "it is given a token of the cluster that it has no use for"
    [container] = containers(deployment)
    slept = (
        container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", 0])
    )
    if pod.get("terminationGracePeriodSeconds", 30) < LEAVING_SECONDS + int(slept[1]):
        yield "it is killed before it has drained"
    mounts = {each["name"] for each in container.get("volumeMounts", ())}
    if mounts != {each["name"] for each in pod.get("volumes", ())}:
        yield "what it mounts is not what it has"
    yield from _container(container)


def _container(container: Mapping[str, Any]) -> Iterator[str]:
    inside = container.get("securityContext", {})
    if inside != {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }:
        yield "it has rights that it does not need"
    resources = container.get("resources", {})
    if {"cpu", "memory"} - resources.get("requests", {}).keys() or "memory" not in resources.get(
        "limits", {}
    ):
        yield "its resources are not said"
    if "cpu" in resources.get("limits", {}):
        yield "a limit of CPU throttles heartbeats"
    for one in container.get("env", ()):
        if one["name"] not in {*READ, "POD_NAME", "POD_IP"}:
            yield f"{one['name']} is read by nobody"
        if "value" in one and (SECRET.search(one["name"]) or "@" in one["value"]):
            yield f"a secret in {one['name']}"
    if container["args"][0] == "server":
        yield from _probed(container)


def _probed(container: Mapping[str, Any]) -> Iterator[str]:
    names = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
    arguments = container["args"]
    if str(names.get("http")) != arguments[arguments.index("--port") + 1]:
        yield "its port is not the one that it listens at"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {}).get("httpGet", {})
        if asked.get("path") not in PUBLIC or asked.get("port") not in names:
            yield f"{probe}: it asks for nothing that is there"
    if container.get("livenessProbe", {}).get("httpGet", {}).get("path") == "/ready":
        yield "livenessProbe: a store that is away would kill every node"
    if "preStop" not in container.get("lifecycle", {}):
        yield "no preStop: requests still come when it drains"


def _covered(deployment: Mapping[str, Any], by_kind: Mapping[str, Any]) -> Iterator[str]:
    budgets = [
        each["spec"]
        for each in by_kind.get("PodDisruptionBudget", {}).values()
        if each["spec"]["selector"]["matchLabels"] == labels(deployment)
    ]
    if len(budgets) != 1 or budgets[0]["maxUnavailable"] >= deployment["spec"]["replicas"]:
        yield "no disruption budget that keeps one of them"


def _service(by_kind: Mapping[str, Any]) -> Iterator[str]:
    for name, service in by_kind.get("Service", {}).items():
        selected = [
            each
            for each in by_kind["Deployment"].values()
            if service["spec"]["selector"] == labels(each)
        ]
        ports = {port["name"] for each in selected for port in containers(each)[0].get("ports", ())}
        if not {port["targetPort"] for port in service["spec"]["ports"]} <= ports or not ports:
            yield f"service {name}: it leads to no port of a pod"


def _kustomized(kustomization: Mapping[str, Any], documents: list[dict[str, Any]]) -> Iterator[str]:
    images = {each["name"]: each.get("newTag", "") for each in kustomization["images"]}
    for container in (one for each in documents for one in containers(each)):
        tag = images.get(container["image"], "")
        if not re.fullmatch(r"\d+\.\d+\.\d+([.-][\w.-]+)?", tag):
            yield f"image {container['image']} is not pinned by the kustomization"
    given = {each["name"]: each["literals"] for each in kustomization["configMapGenerator"]}
    for container in (one for each in documents for one in containers(each)):
        for source in container.get("envFrom", ()):
            if source["configMapRef"]["name"] not in given:
                yield f"there is no config map {source['configMapRef']['name']}"
    for literal in (one for literals in given.values() for one in literals):
        name = literal.partition("=")[0]
        if name not in READ or SECRET.search(name):
            yield f"{name} does not belong into a config map"
