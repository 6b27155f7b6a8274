"""The OpenAPI 3.1 document: the operations, with the very shapes that decode their requests."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from inspect import cleandoc
from typing import Any

import msgspec

from perdure.api.errors import Failure
from perdure.api.limits import ID_MAX, KEY_CHARS_MAX
from perdure.api.operations import EVENT_STREAM, JSON, OPERATIONS, Method, Operation
from perdure.api.shapes.runs import Event

REF = "#/components/schemas/{name}"
DESCRIPTION = (
    "Durable agents: a message starts a run, a run's events can be followed, and whatever was "
    "begun is finished. With `after`, which may be empty, a list comes page by page: `next` is the "
    "cursor of the next page, null at the end. Times are UTC."
)
TEXT = {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX}


def document(version: str, operations: Iterable[Operation] = OPERATIONS) -> dict[str, Any]:
    """Return the document of `operations`, for this version of the server."""
    listed = tuple(operations)
    schemas = _Schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        for method in operation.methods:
            path = paths.setdefault(operation.path, {})
            path[method.lower()] = _operation(operation, method, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Perdure", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key."}
            },
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(one.tag for one in listed)],
    }


class _Schemas:
    """The schemas of every shape that the operations name, by reference."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        types: dict[Any, None] = {Event: None, Failure: None}
        for one in operations:
            types.update(dict.fromkeys((one.answer, one.query, one.body)))
        listed = [type_ for type_ in types if type_ not in (None, object)]
        made, self.components = msgspec.json.schema_components(listed, ref_template=REF)
        self._made: dict[Any, Any] = dict(zip(listed, made, strict=True))
        queries = {one.query for one in operations if one.query is not None}
        for schema in self.components.values():
            schema["description"] = cleandoc(schema["description"])
        self._queries = {query: self.components.pop(query.__name__) for query in queries}

    def of(self, type_: Any) -> Any:
        """Return the schema of a type: a reference, if it is a shape."""
        return {"type": "object"} if type_ is object else self._made[type_]

    def parameters(self, query: Any) -> list[dict[str, Any]]:
        """Return the fields of a query as parameters."""
        fields = self._queries[query]["properties"]
        return [{"name": name, "in": "query", "schema": fields[name]} for name in fields]


def _operation(operation: Operation, method: Method, schemas: _Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.id if method != "PATCH" else f"{operation.id}_partly",
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [{"key": []}] if operation.scope is not None else [],
        "responses": _responses(operation, schemas),
    }
    if operation.scope is not None:
        told["x-scope"] = operation.scope
    if parameters := _parameters(operation, schemas):
        told["parameters"] = parameters
    if operation.body is not None:
        content = {JSON: {"schema": schemas.of(operation.body)}}
        told["requestBody"] = {"required": _needs_body(operation.body), "content": content}
    return told


def _needs_body(body: Any) -> bool:
    return body is object or any(field.required for field in msgspec.structs.fields(body))


def _parameters(operation: Operation, schemas: _Schemas) -> list[dict[str, Any]]:
    found = [_path_parameter(operation, name) for name in operation.path_parameters]
    if operation.query is not None:
        found += schemas.parameters(operation.query)
    if operation.idempotent:
        found.append(_header("Idempotency-Key", "A repetition with it has the first one's answer."))
    if EVENT_STREAM in operation.media:
        found.append(_header("Last-Event-ID", "A stream goes on after this sequence."))
    return found


def _path_parameter(operation: Operation, name: str) -> dict[str, Any]:
    is_number = name in operation.integers
    schema = {"type": "integer", "minimum": 1, "maximum": ID_MAX} if is_number else TEXT
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str, description: str) -> dict[str, Any]:
    about = {"required": False, "description": description}
    return {"name": name, "in": "header", **about, "schema": TEXT}


def _responses(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.answer is not None:
        content = {JSON: {"schema": schemas.of(operation.answer)}}
        other = {media: {"schema": {"type": "string"}} for media in operation.media}
        answer["content"] = {media: content.get(media, other[media]) for media in operation.media}
    responses = {str(operation.status): answer}
    for status, said in operation.errors().items():
        content = {JSON: {"schema": schemas.of(Failure)}}
        responses[str(status)] = {"description": said, "content": content}
    return responses
