"""What is asked of a server, one request after the other, and what follows from its answers.

A dialogue is a generator: it yields calls and pauses, is sent the answers (or thrown what went
wrong), and returns its outcome. Whether somebody waits for them on an event loop or in a thread is
all that the two clients differ in.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator
from typing import Any, Literal, TypeVar
from uuid import uuid4

from msgspec import UNSET

from perdure.api import shapes as s
from perdure.api.limits import WAIT_SECONDS_MAX
from perdure.client.calls import Call, Pause, call
from perdure.client.errors import ApiError, RunWaits, Unreachable
from perdure.core.errors import InvalidInput, NotFound, RunCancelled, RunFailed
from perdure.core.runs import TERMINAL

T = TypeVar("T")
Dialogue = Generator[Call | Pause, Any, T]
Mode = Literal["queue", "steer", "interrupt", "reject"]
Decision = Literal["approve", "deny", "edit", "reassign"]
WaitKind = Literal["answer", "decision", "approval", "budget"]
Resolution = Literal["happened", "did_not_happen", "tell_model"]

DELAY_SECONDS_MIN = 0.2
DELAY_SECONDS_MAX = 15.0
TEMPORARY = frozenset({429, 500, 502, 503, 504})
"""What may be asked again: the server was cut off, did not carry it out, or nobody knows."""


def ask(asked: Call, retries: int | None) -> Dialogue[Any]:
    """Ask once, and again after what may pass, so many times; None: until it does."""
    attempt = 0
    while True:
        try:
            return (yield asked)
        except (Unreachable, ApiError) as error:
            may_pass = isinstance(error, Unreachable) or error.status in TEMPORARY
            used_up = retries is not None and attempt >= retries
            if not may_pass or used_up or not asked.is_repeatable:
                raise
            seconds = delay(attempt)
            if isinstance(error, ApiError) and error.retry_after_s is not None:
                seconds = max(seconds, error.retry_after_s)
        attempt += 1
        yield Pause(seconds)


def delay(attempt: int) -> float:
    """Return how long to wait after a failure, in seconds: longer each time, never all together."""
    longest = min(DELAY_SECONDS_MAX, DELAY_SECONDS_MIN * 2.0 ** min(attempt, 16))
    return longest * (0.5 + secrets.randbelow(500) / 1000)


# ---------------------------------------------------------------------------------------- agents


def agents(retries: int) -> Dialogue[list[s.Agent]]:
    """All agents, newest first."""
    page: s.Page[s.Agent] = yield from ask(call("list_agents"), retries)
    return page.data


def agent(which: int | str, retries: int) -> Dialogue[s.Agent]:
    """One agent, by its id or its name. Raises `NotFound` for a name that no agent has."""
    if isinstance(which, int):
        found: s.Agent = yield from ask(call("get_agent", path={"id": which}), retries)
        return found
    every = yield from agents(retries)
    for each in every:
        if each.name == which:
            return each
    known = ", ".join(sorted(each.name for each in every)) or "none"
    raise NotFound(f"there is no agent {which!r} on the server; its agents are: {known}")


def define_agent(body: s.AgentCreate, retries: int) -> Dialogue[s.Agent]:
    """Make the agent of that name what `body` says, or make one."""
    for known in (yield from agents(retries)):
        if known.name == body.name:
            return (yield from _update_agent(known.id, body, retries))
    try:
        made: s.Agent = yield from ask(call("create_agent", body=body, key=fresh_key()), retries)
    except ApiError as error:
        if error.status != 422:
            raise
        # Somebody else may have made it meanwhile.
        for known in (yield from agents(retries)):
            if known.name == body.name:
                return (yield from _update_agent(known.id, body, retries))
        raise
    return made


def _update_agent(id_: int, body: s.AgentCreate, retries: int) -> Dialogue[s.Agent]:
    changed: s.Agent = yield from ask(call("update_agent", path={"id": id_}, body=body), retries)
    return changed


# ------------------------------------------------------------------------------------------ runs


def send(
    ids: dict[str, int],
    which: int | str,
    content: Any,
    *,
    session: str | None,
    mode: Mode,
    idempotency_key: str | None,
    gard: int | None,
    context: s.MessageContext | None,
    budget: s.BudgetCreate | None,
    retries: int,
) -> Dialogue[int]:
    """Send a message; returns the id of its run. `ids` remembers the ids of agents by name."""
    if idempotency_key == "":
        raise InvalidInput("an idempotency key is not empty; leave it out to have none")
    body = s.MessageCreate(
        content=content,
        conversation_key=session,
        mode=mode,
        gard_id=gard,
        context=context,
        budget=budget,
    )
    key = idempotency_key or fresh_key()
    remembered = isinstance(which, str) and which in ids
    id_ = which if isinstance(which, int) else (yield from _id_of(ids, which, retries))
    try:
        accepted: s.Accepted = yield from ask(
            call("send_message", path={"id": id_}, body=body, key=key), retries
        )
    except ApiError as error:
        if error.status != 404 or not remembered or isinstance(which, int):
            raise
        # The agent of that name is another one by now.
        del ids[which]
        id_ = yield from _id_of(ids, which, retries)
        accepted = yield from ask(
            call("send_message", path={"id": id_}, body=body, key=key), retries
        )
    return accepted.run_id


def _id_of(ids: dict[str, int], name: str, retries: int) -> Dialogue[int]:
    if name not in ids:
        ids[name] = (yield from agent(name, retries)).id
    return ids[name]


def runs(
    ids: dict[str, int],
    which: int | str | None,
    status: Any,
    limit: int | None,
    retries: int,
) -> Dialogue[list[s.Run]]:
    """Runs, newest first, of one agent or status if asked so."""
    asked: dict[str, Any] = {"status": status, "limit": limit}
    if which is not None:
        asked["agent_id"] = which if isinstance(which, int) else (yield from _id_of(ids, which, 0))
    query = s.RunQuery(**{name: value for name, value in asked.items() if value is not None})
    page: s.Page[s.Run] = yield from ask(call("list_runs", query=query), retries)
    return page.data


def sessions(archived: bool, limit: int | None, retries: int) -> Dialogue[list[s.Session]]:
    """Sessions of all agents, the latest first."""
    query = s.SessionQuery(archived=archived, limit=UNSET if limit is None else limit)
    page: s.Page[s.Session] = yield from ask(call("list_sessions", query=query), retries)
    return page.data


def wait(run: int, timeout: float | None) -> Dialogue[s.Run]:
    """Wait until a run has ended or waits for a person; returns it as it stands when time is up.

    A server that is away meanwhile is waited for as well.
    """
    until = None if timeout is None else time.monotonic() + timeout
    attempt = 0
    found: s.Run | None = None
    while True:
        left = WAIT_SECONDS_MAX if until is None else until - time.monotonic()
        hold = round(max(0.0, min(left, WAIT_SECONDS_MAX)), 3)
        asked_at = time.monotonic()
        try:
            query = s.WaitQuery(timeout=hold)
            found = yield call("wait_for_run", path={"id": run}, query=query, hold_s=hold)
        except (Unreachable, ApiError) as error:
            if isinstance(error, ApiError) and error.status not in TEMPORARY:
                raise
            if left <= 0:
                raise
        else:
            if found is not None and (is_over(found) or needs_a_person(found) or left <= 0):
                return found
            if time.monotonic() - asked_at >= hold / 2:
                attempt = 0
                continue
        # It was not held: the server is away, or had its reasons.
        seconds = delay(attempt)
        attempt += 1
        yield Pause(seconds if until is None else min(seconds, max(0.0, left)))


def result(run: int, timeout: float | None) -> Dialogue[Any]:
    """Wait for a run's output.

    Raises `RunFailed`, `RunCancelled`, `RunWaits`, and `TimeoutError` when time is up.
    """
    found = yield from wait(run, timeout)
    if found.status == "completed":
        return found.output
    if not is_over(found):
        if needs_a_person(found):
            raise RunWaits(found)
        raise TimeoutError(f"run {run} has not ended within {timeout:g} s; it is {found.status}")
    told = found.failure_metadata
    error_class, code = str(told.get("error_class", "internal")), str(told.get("error_code", ""))
    words = told.get("error", "without a word")
    if found.row_status == "cancelled" or code == "cancelled":
        raise RunCancelled(f"run {run} was cancelled: {words}")
    raise RunFailed(f"run {run} failed ({error_class}/{code}): {words}", error_class, code)


def waits_query(what: WaitKind | None, limit: int | None) -> s.WaitsQuery:
    """Return how to ask for what waits for people."""
    return s.WaitsQuery(
        what=UNSET if what is None else what, limit=UNSET if limit is None else limit
    )


FOR_SOMEBODY = frozenset({"answer", "decision", "approval", "budget", "release"})


def is_over(run: s.Run) -> bool:
    """Say whether a run has ended; one that joined another ends with it."""
    return run.row_status in TERMINAL or run.status in ("completed", "failed")


def is_closed(run: s.Run) -> bool:
    """Say whether a run's own events are complete; one that joined another adds none."""
    return is_over(run) or run.row_status == "merged"


def needs_a_person(run: s.Run) -> bool:
    """Say whether a run waits for an answer, a decision or approval, or in quarantine."""
    return any(wait.what in FOR_SOMEBODY for wait in run.waits)


def fresh_key() -> str:
    """Return an idempotency key that nobody has used."""
    return uuid4().hex
