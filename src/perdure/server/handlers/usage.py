"""What was used, by model, and what it cost."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from msgspec import UNSET, UnsetType

from perdure.api import shapes
from perdure.api.cost import cost_of, sum_of
from perdure.api.decoding import decode_id
from perdure.api.errors import INVALID, Rejected
from perdure.api.shapes import timestamp_or_none
from perdure.core.messages import Usage, plus
from perdure.server.desk import Answer, Desk, Request

ROWS_READ = 1_000
"""So many rows of runs are read at a time."""


async def agent_usage(desk: Desk, request: Request) -> Answer:
    """What one agent has used."""
    entry = await desk.agent(decode_id(request.path["id"]))
    return await _usage(desk, request.query, entry.id)


async def tenant_usage(desk: Desk, request: Request) -> Answer:
    """What all agents have used."""
    return await _usage(desk, request.query, None)


async def _usage(desk: Desk, query: shapes.UsageQuery, agent: int | None) -> Answer:
    since, until = _moment("since", query.since), _moment("until", query.until)
    runs, calls = 0, Counter[str]()
    used: dict[str, Usage] = {}
    before = None if until is None else (until, "")
    name = None if agent is None else str(agent)
    while rows := await desk.runs.rows(agent=name, before=before, limit=ROWS_READ):
        before = (rows[-1].created_at, rows[-1].id)
        rows = [row for row in rows if since is None or row.created_at >= since]
        for row in rows:
            if row.status == "merged":
                continue
            runs += 1
            for model, use in (await desk.used(row)).items():
                calls[model] += use.calls
                used[model] = plus(used.get(model, Usage()), use.usage)
        if since is not None and before[0] < since:
            break
    models = tuple(
        shapes.ModelUsage(
            model=model,
            calls=calls[model],
            input_tokens=one.input_tokens,
            output_tokens=one.output_tokens,
            cost=cost_of([(model, one)], desk.runs.prices),
        )
        for model, one in sorted(used.items())
    )
    usage = shapes.Usage(
        agent_id=agent,
        since=timestamp_or_none(since),
        until=timestamp_or_none(until),
        runs=runs,
        input_tokens=sum(one.input_tokens for one in models),
        output_tokens=sum(one.output_tokens for one in models),
        cost=sum_of(one.cost for one in models),
        models=models,
    )
    return Answer(shapes.Data(usage))


def _moment(name: str, text: str | UnsetType) -> int | None:
    """Return a time of a query in milliseconds since 1970. Raises `Rejected` (422)."""
    if text is UNSET:
        return None
    try:
        moment = datetime.fromisoformat(str(text))
        if moment.tzinfo is not None:
            at = int(moment.timestamp() * 1000)
            timestamp_or_none(at)
            return at
        expected = f"{INVALID}: expected a time zone, such as Z"
    except (ValueError, OverflowError):
        expected = f"{INVALID}: expected a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
    raise Rejected(422, {name: [expected]})
