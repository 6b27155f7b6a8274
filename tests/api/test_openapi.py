"""The operations and the document that is made of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, get_args

import msgspec
import pytest

from perdure.api import shapes
from perdure.api.openapi import document
from perdure.api.operations import BY_ID, OPERATIONS, PREFIX, Operation
from perdure.api.shapes.runs import AskedStatus

DOCUMENT = json.loads(msgspec.json.encode(document("0.1.0")))
SCHEMAS = DOCUMENT["components"]["schemas"]
IDS = [operation.id for operation in OPERATIONS]

# The surface of Norns, and what is ours: method and path -> operation.
SURFACE = """
GET    /agents                                list_agents
POST   /agents                                create_agent
GET    /agents/{id}                           get_agent
PUT    /agents/{id}                           update_agent
PATCH  /agents/{id}                           update_agent
DELETE /agents/{id}                           archive_agent
POST   /agents/{id}/messages                  send_message
GET    /agents/{id}/status                    agent_status
GET    /agents/{id}/runs                      list_agent_runs
GET    /agents/{id}/conversations             list_conversations
GET    /agents/{id}/conversations/{key}       get_conversation
DELETE /agents/{id}/conversations/{key}       delete_conversation
GET    /agents/{id}/usage                     agent_usage
GET    /runs                                  list_runs
GET    /runs/{id}                             get_run
GET    /runs/{id}/wait                        wait_for_run
GET    /runs/{id}/events                      list_events
GET    /runs/{id}/summary                     get_summary
POST   /runs/{id}/retry                       retry_run
POST   /runs/{id}/fork                        fork_run
POST   /runs/{id}/reply                       reply_to_run
POST   /runs/{id}/resolve                     resolve_call
POST   /runs/{id}/decide                      decide_approval
POST   /runs/{id}/budget                      raise_budget
POST   /runs/{id}/cancel                      cancel_run
GET    /waits                                 list_waits
GET    /standing_approvals                    list_standing_approvals
POST   /standing_approvals                    create_standing_approval
DELETE /standing_approvals/{id}               revoke_standing_approval
GET    /policy                                get_policy
PUT    /policy                                update_policy
DELETE /policy                                delete_policy
GET    /sessions                              list_sessions
GET    /sessions/{id}                         get_session
PUT    /sessions/{id}                         update_session
PATCH  /sessions/{id}                         update_session
DELETE /sessions/{id}                         archive_session
POST   /sessions/{id}/restore                 restore_session
POST   /sessions/{id}/release                 release_session
GET    /tools                                 list_tools
GET    /workers                               list_workers
GET    /usage                                 tenant_usage
GET    /triggers                              list_triggers
POST   /triggers                              create_trigger
GET    /triggers/{id}                         get_trigger
PUT    /triggers/{id}                         update_trigger
PATCH  /triggers/{id}                         update_trigger
DELETE /triggers/{id}                         delete_trigger
POST   /triggers/{id}/fire                    fire_trigger
GET    /gards                                 list_gards
POST   /gards                                 create_gard
GET    /gards/{id}                            get_gard
PUT    /gards/{id}                            update_gard
PATCH  /gards/{id}                            update_gard
DELETE /gards/{id}                            destroy_gard
GET    /gards/{id}/ports                      list_ports
GET    /hooks                                 list_hooks
POST   /hooks                                 create_hook
GET    /hooks/{id}                            get_hook
PUT    /hooks/{id}                            update_hook
PATCH  /hooks/{id}                            update_hook
DELETE /hooks/{id}                            delete_hook
POST   /hooks/{id}                            receive_hook
GET    /endpoints                             list_endpoints
POST   /endpoints                             create_endpoint
GET    /endpoints/{id}                        get_endpoint
PUT    /endpoints/{id}                        update_endpoint
PATCH  /endpoints/{id}                        update_endpoint
DELETE /endpoints/{id}                        delete_endpoint
POST   /endpoints/{id}/rotate                 rotate_endpoint
POST   /endpoints/{id}/test                   test_endpoint
GET    /endpoints/{id}/deliveries             list_deliveries
POST   /deliveries/{id}/retry                 retry_delivery
GET    /api_keys                              list_keys
POST   /api_keys                              create_key
POST   /api_keys/{id}/rotate                  rotate_key
DELETE /api_keys/{id}                         revoke_key
GET    /nodes                                 list_nodes
GET    /nodes/{node}                          get_node
POST   /nodes/{node}/drain                    drain_node
POST   /telemetry/first-run                   record_first_run
"""
PUBLIC = {"receive_hook", "record_first_run", "health", "ready", "openapi", "docs"}


def test_the_surface_is_this() -> None:
    expected = {tuple(line.split()) for line in SURFACE.strip().splitlines()}
    found = {
        (method, operation.path.removeprefix(PREFIX), operation.id)
        for operation in OPERATIONS
        if operation.path.startswith(PREFIX)
        for method in operation.methods
    }
    assert found == expected
    assert {one.path for one in OPERATIONS if not one.path.startswith(PREFIX)} == {
        "/health",
        "/ready",
        "/openapi.json",
        "/docs",
    }


def test_no_two_operations_are_the_same() -> None:
    places = Counter((method, one.path) for one in OPERATIONS for method in one.methods)
    assert max(places.values()) == 1
    assert len(BY_ID) == len(OPERATIONS)


@pytest.mark.parametrize("id", IDS)
def test_an_operation_says_what_may_go_wrong(id: str) -> None:
    operation = BY_ID[id]
    errors = operation.errors()
    assert (operation.scope is None) == (id in PUBLIC)
    assert ({401, 403} <= set(errors)) == (operation.scope is not None)
    assert (404 in errors) == bool(operation.path_parameters)
    assert (409 in errors) == bool(operation.conflicts or operation.idempotent)
    takes_something = operation.query or operation.body or operation.idempotent
    assert (422 in errors) == bool(takes_something or operation.refusals)
    assert ({400, 408, 413, 415} <= set(errors)) == (operation.body is not None)
    assert operation.status not in errors


def test_what_only_looks_is_allowed_to_readers() -> None:
    admins = {"list_keys", "list_endpoints", "get_endpoint", "list_deliveries"}
    admins |= {one.id for one in OPERATIONS if one.operators}
    for operation in OPERATIONS:
        if operation.scope is not None and operation.id not in admins:
            assert (operation.scope == "read") == (operation.methods == ("GET",)), operation.id


def test_every_creating_post_is_idempotent() -> None:
    starts = {one.id for one in OPERATIONS if one.status in (201, 202)} - {"receive_hook"}
    assert {one.id for one in OPERATIONS if one.idempotent} == starts


def test_the_document_says_what_it_is() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == "0.1.0"


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    text = json.dumps(DOCUMENT)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named <= set(SCHEMAS)
    assert set(SCHEMAS) - named <= {"Event"}


@pytest.mark.parametrize("id", IDS)
def test_an_operation_is_in_the_document(id: str) -> None:
    operation: Operation = BY_ID[id]
    for method in operation.methods:
        told = DOCUMENT["paths"][operation.path][method.lower()]
        assert told["summary"] == operation.summary
        assert set(told["responses"]) == {
            str(operation.status),
            *map(str, operation.errors()),
        }
        assert ("requestBody" in told) == (operation.body is not None)
        places = {(one["name"], one["in"]) for one in told.get("parameters", ())}
        assert {(name, "path") for name in operation.path_parameters} <= places
        assert (("Idempotency-Key", "header") in places) == operation.idempotent


def test_a_query_is_told_by_its_fields() -> None:
    told: list[Any] = DOCUMENT["paths"]["/api/v1/runs"]["get"]["parameters"]
    assert [one["name"] for one in told] == ["limit", "after", "status", "agent_id"]
    assert told[2]["schema"]["enum"] == sorted(get_args(AskedStatus))


def test_events_may_come_as_a_stream() -> None:
    told = DOCUMENT["paths"]["/api/v1/runs/{id}/events"]["get"]
    assert set(told["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "Last-Event-ID" in [one["name"] for one in told["parameters"]]


def test_every_shape_is_reachable_from_an_operation() -> None:
    """What no operation takes or gives would only be dead weight."""
    queries = {one.query.__name__ for one in OPERATIONS if one.query is not None}
    bases = {"Shape", "Data", "Page"}
    exported = {name: getattr(shapes, name) for name in shapes.__all__}
    made = {name for name, value in exported.items() if isinstance(value, type)}
    assert made - set(SCHEMAS) == queries | bases
