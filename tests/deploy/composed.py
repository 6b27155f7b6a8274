"""What a compose file of ours may say: the fields of the Compose specification that are used here.

Its schema is not among the packages that the lock can bring, so that this is a part of it, written
down field by field; what is not in the list is refused until somebody has looked it up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from perdure.api.operations import OPERATIONS
from tests.deploy.files import FULL_VERSION, OURS, READ, ROOT, SECRET, image_name

TOP: Final = {"name": str, "services": dict, "volumes": dict, "networks": dict}
SERVICE: Final[Mapping[str, type | tuple[type, ...]]] = {
    "image": str,
    "build": dict,
    "command": list,
    "entrypoint": list,
    "environment": dict,
    "volumes": list,
    "ports": list,
    "tmpfs": list,
    "init": bool,
    "restart": str,
    "stop_grace_period": str,
    "stop_signal": str,
    "read_only": bool,
    "cap_drop": list,
    "cap_add": list,
    "security_opt": list,
    "ulimits": dict,
    "healthcheck": dict,
    "depends_on": dict,
    "user": str,
    "hostname": str,
    "shm_size": str,
}
HEALTH: Final = {"test", "interval", "timeout", "retries", "start_period", "disable"}
VOLUME: Final = re.compile(r"(?P<source>[\w./-]+):(?P<target>/[\w./-]+)(?P<mode>:ro)?")
PORT: Final = re.compile(r"127\.0\.0\.1:(\d+):(\d+)")
DURATION: Final = re.compile(r"\d+(ms|s|m)")
VARIABLE: Final = re.compile(r"\$\{(\w+)(:\?[^}]+|:-[^}]*)?\}")
LEAVING_SECONDS: Final = 35
"""What a server or a worker may need between SIGTERM and its end."""

FOREIGN: Final = {
    "postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS"},
    "redis": {"REDISCLI_AUTH"},
    "nats": {"NATS_PASSWORD", "NATS_NAME"},
    "caddy": {"XDG_CONFIG_HOME", "XDG_DATA_HOME"},
}
OF_AGENTS: Final = {"REFUND_PAYMENTS", "PARCELS_LEDGER", "PGPASSWORD"}
"""What the agents of the examples read, and what the driver of PostgreSQL reads."""

PORTS_OF: Final = {"postgres": 5432, "redis": 6379, "nats": 4222}
PATHS: Final = {one.path for one in OPERATIONS if one.scope is None}


def problems(path: Path, document: Mapping[str, Any], version: str) -> Iterator[str]:
    """Say what is wrong with a compose file."""
    for key, value in document.items():
        if key not in TOP and not key.startswith("x-"):
            yield f"{key}: not a field of a compose file"
        elif key in TOP and not isinstance(value, TOP[key]):
            yield f"{key}: not a {TOP[key].__name__}"
    services = document["services"]
    volumes = document.get("volumes") or {}
    for name, service in services.items():
        for problem in (
            *_fields(service),
            *_image(service, path, version),
            *_environment(service),
            *_mounts(service, path, volumes),
            *_addresses(service, services),
            *_depends(service, services),
            *_health(service),
            *_rights(service),
        ):
            yield f"{name}: {problem}"
    used = {each.partition(":")[0] for one in services.values() for each in one.get("volumes", ())}
    yield from (f"{name}: a volume that nobody uses" for name in volumes if name not in used)


def _is_ours(service: Mapping[str, Any]) -> bool:
    return image_name(service.get("image", "")) in OURS


def _fields(service: Mapping[str, Any]) -> Iterator[str]:
    for key, value in service.items():
        if key not in SERVICE:
            yield f"{key}: not a field that is used here"
        elif not isinstance(value, SERVICE[key]):
            yield f"{key}: {value!r} is of the wrong type"
        elif isinstance(value, list) and not all(isinstance(each, str) for each in value):
            yield f"{key}: {value!r} has something else than strings: quote it"
    if service.get("restart") != "unless-stopped":
        yield "restart: what was killed must come back"
    for key in ("stop_grace_period",):
        if key in service and not DURATION.fullmatch(service[key]):
            yield f"{key}: {service[key]!r} is no duration"


def _image(service: Mapping[str, Any], path: Path, version: str) -> Iterator[str]:
    image = service.get("image", "")
    if not FULL_VERSION.fullmatch(image):
        yield f"image: {image!r} is not pinned to a version"
    elif _is_ours(service) and not image.endswith(f":{version}"):
        yield f"image: {image} is not the version of this package, {version}"
    if build := service.get("build"):
        context = (path.parent / build["context"]).resolve()
        if context != ROOT or not (context / build["dockerfile"]).is_file():
            yield "build: there is no such file"


def _environment(service: Mapping[str, Any]) -> Iterator[str]:
    given = service.get("environment", {})
    known = (
        {*READ, *OF_AGENTS}
        if _is_ours(service)
        else FOREIGN.get(image_name(service.get("image", "")), set())
    )
    for name, value in given.items():
        if name not in known:
            yield f"environment: {name} is read by nobody"
        if value is not None and not isinstance(value, str):
            yield f"environment: {name} is {value!r}: quote it"
            continue
        if SECRET.search(name) and value is not None and not VARIABLE.fullmatch(value.strip('"')):
            yield f"environment: a secret in {name}"
    for text in _texts(service):
        if re.search(r"://[^/@\s]*:(?!\$\{)[^/@\s]+@", text):
            yield f"a password in {text!r}"
        for variable in re.findall(r"(?<!\$)\$(?:\{[^}]*\}?|\w+)", text):
            if not VARIABLE.fullmatch(variable):
                yield f"{variable!r} is no variable of compose"
            elif ":" not in variable:
                yield f"{variable} may be empty: say what it is with :?, or a default with :-"


def _mounts(service: Mapping[str, Any], path: Path, volumes: Mapping[str, Any]) -> Iterator[str]:
    for each in service.get("volumes", ()):
        found = VOLUME.fullmatch(each)
        if found is None:
            yield f"volumes: {each!r} is not SOURCE:TARGET"
        elif found["source"].startswith("."):
            if not (path.parent / found["source"]).exists():
                yield f"volumes: there is no {found['source']}"
            if not found["mode"]:
                yield f"volumes: {each} may be written: add :ro"
        elif found["source"] not in volumes:
            yield f"volumes: {found['source']} is not among the volumes"
    for each in service.get("ports", ()):
        if not PORT.fullmatch(each):
            yield f"ports: {each!r} is not 127.0.0.1:PORT:PORT; outside there is no TLS"


def _addresses(service: Mapping[str, Any], services: Mapping[str, Any]) -> Iterator[str]:
    """Whoever is named by a URL must be here, and listen at that port."""
    for text in _texts(service):
        for url in re.findall(r"\w+://[^\s'\"]+", VARIABLE.sub("x", text)):
            parts = urlsplit(url)
            for place in parts.netloc.rpartition("@")[2].split(","):
                host, _, port = place.partition(":")
                if host in ("127.0.0.1", "localhost"):
                    continue
                if host not in services:
                    yield f"{url}: there is no service {host!r}"
                elif int(port or 0) != listens_at(services[host]):
                    yield f"{url}: {host} does not listen at {port or 'no port'}"


def listens_at(service: Mapping[str, Any]) -> int:
    """Return the port of a service; 0 if it is not known."""
    command = service.get("command", [])
    if "--port" in command:
        return int(command[command.index("--port") + 1])
    return PORTS_OF.get(image_name(service["image"]), 4000 if "caddy" in service["image"] else 0)


def _depends(service: Mapping[str, Any], services: Mapping[str, Any]) -> Iterator[str]:
    for name, how in service.get("depends_on", {}).items():
        if name not in services:
            yield f"depends_on: there is no service {name!r}"
        elif how.get("condition") == "service_healthy":
            has_check = "test" in services[name].get("healthcheck", {})
            if not has_check and not _is_ours(services[name]):
                yield f"depends_on: nobody checks the health of {name}"
        elif how.get("condition") != "service_started":
            yield f"depends_on: {name} has no condition"


def _health(service: Mapping[str, Any]) -> Iterator[str]:
    check = service.get("healthcheck", {})
    yield from (f"healthcheck: {key} is not known" for key in check.keys() - HEALTH)
    if _is_ours(service):
        if service["command"][0] == "worker" and not check.get("disable"):
            yield "healthcheck: a worker listens nowhere: disable it"
    elif "test" not in check and not image_name(service.get("image", "")).endswith("caddy"):
        yield "healthcheck: there is none"
    for port, path in re.findall(r"http://[\w.]+:(\d+)(/\w+)", " ".join(check.get("test", ()))):
        if _is_ours(service) and (path not in PATHS or int(port) != listens_at(service)):
            yield f"healthcheck: nothing is at {port}{path}"


def _rights(service: Mapping[str, Any]) -> Iterator[str]:
    if "no-new-privileges:true" not in service.get("security_opt", ()):
        yield "security_opt: no-new-privileges:true is missing"
    if not _is_ours(service):
        return
    if service.get("cap_drop") != ["ALL"] or "cap_add" in service or "user" in service:
        yield "cap_drop: it needs no capability, and is nobody already"
    if service.get("read_only") is not True or "/tmp" not in service.get("tmpfs", ()):
        yield "read_only: it writes to its volume and to /tmp alone"
    period = service.get("stop_grace_period", "10s")
    if not period.endswith("s") or int(period.removesuffix("s")) < LEAVING_SECONDS:
        yield f"stop_grace_period: {period} is less than {LEAVING_SECONDS} s: it would be killed"
    if not service.get("init"):
        yield "init: a tool's orphans are reaped by nobody"


def _texts(thing: Any) -> Iterator[str]:
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _texts(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from _texts(value)
