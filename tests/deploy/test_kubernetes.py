"""The manifests: known fields, probes that ask for something, drains that fit, and no secrets."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.files import DEPLOY, MANIFESTS, documents
from tests.deploy.manifested import containers, problems

WORLD = [found for path in MANIFESTS for found in documents(path.read_text("utf-8"))]


def find(world: list[dict[str, Any]], kind: str, name: str) -> Any:
    """Return a document."""
    [found] = [
        one for one in world if one["kind"] == kind and one.get("metadata", {}).get("name") == name
    ]
    return found


def test_the_manifests_are_as_they_must_be() -> None:
    assert problems(WORLD) == []


def test_the_kustomization_names_every_file() -> None:
    [kustomization] = [one for one in WORLD if one["kind"] == "Kustomization"]
    files = {path.name for path in (DEPLOY / "kubernetes").iterdir()} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files


def test_workers_find_the_servers() -> None:
    [kustomization] = [one for one in WORLD if one["kind"] == "Kustomization"]
    [config] = kustomization["configMapGenerator"]
    given = dict(each.split("=", 1) for each in config["literals"])
    url = urlsplit(given["PERDURE_URL"])
    service = find(WORLD, "Service", str(url.hostname))
    assert url.port in {port["port"] for port in service["spec"]["ports"]}


SERVER = ("Deployment", "perdure-server")
WORKER = ("Deployment", "perdure-worker")
POD = ("spec", "template", "spec")
ONE = (*POD, "containers", 0)


@pytest.mark.parametrize(
    ("place", "keys", "value", "said"),
    [
        (SERVER, (*ONE, "livenesProbe"), {}, "not a field"),
        (SERVER, (*ONE, "livenessProbe", "httpGet", "path"), "/ready", "would kill every node"),
        (SERVER, (*ONE, "livenessProbe", "httpGet", "path"), "/healthz", "nothing that is there"),
        (SERVER, (*ONE, "readinessProbe", "httpGet", "port"), "web", "nothing that is there"),
        (SERVER, (*ONE, "startupProbe"), {}, "nothing that is there"),
        (SERVER, (*ONE, "startupProbe", "failureThreshold"), "150", "no int"),
        (SERVER, (*ONE, "ports", 0, "containerPort"), 4001, "not the one that it listens at"),
        (SERVER, (*ONE, "lifecycle"), {}, "no preStop"),
        (SERVER, (*ONE, "image"), "perdure:latest", "not pinned"),
        (SERVER, (*ONE, "resources", "limits", "cpu"), "1", "throttles"),
        (SERVER, (*ONE, "resources", "requests"), {"cpu": "1"}, "are not said"),
        (SERVER, (*ONE, "securityContext", "readOnlyRootFilesystem"), False, "rights"),
        (SERVER, (*ONE, "env", 0), {"name": "PERDURE_KEY", "value": "abc"}, "a secret"),
        (SERVER, (*ONE, "env", 0), {"name": "PERDURE_STROE", "value": "x"}, "read by nobody"),
        (SERVER, (*ONE, "volumeMounts", 0, "name"), "data", "not what it has"),
        (SERVER, (*POD, "terminationGracePeriodSeconds"), 30, "before it has drained"),
        (SERVER, (*POD, "securityContext", "runAsNonRoot"), False, "as root"),
        (SERVER, (*POD, "securityContext", "seccompProfile", "type"), "Unconfined", "seccomp"),
        (SERVER, (*POD, "automountServiceAccountToken"), True, "no use for"),
        (SERVER, ("spec", "replicas"), 1, "alone"),
        (SERVER, ("spec", "selector", "matchLabels"), {"a": "b"}, "does not select"),
        (WORKER, (*POD, "terminationGracePeriodSeconds"), 30, "before it has drained"),
        (WORKER, (*ONE, "envFrom", 0, "configMapRef", "name"), "other", "no config map"),
        (("PodDisruptionBudget", "perdure-server"), ("spec", "maxUnavailable"), 3, "keeps one"),
        (
            ("PodDisruptionBudget", "perdure-worker"),
            ("spec", "selector"),
            {"matchLabels": {}},
            "no d",
        ),
        (("Service", "perdure"), ("spec", "ports", 0, "targetPort"), "web", "no port of a pod"),
        (("Service", "perdure"), ("spec", "selector"), {"a": "b"}, "no port of a pod"),
        (("Service", "perdure"), ("apiVersion",), "v2", "not known here"),
    ],
)
def test_a_planted_mistake_is_found(
    place: tuple[str, str], keys: tuple[Any, ...], value: Any, said: str
) -> None:
    world = deepcopy(WORLD)
    document = find(world, *place)
    *above, last = keys
    for key in above:
        document = document[key]
    document[last] = value
    found = problems(world)
    assert any(said in problem for problem in found), found


def test_every_container_runs_our_image() -> None:
    names = [one["image"] for each in WORLD for one in containers(each)]
    assert names == ["perdure", "perdure-agents"]
