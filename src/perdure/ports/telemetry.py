"""Telemetry: what the runtime tells about itself. The names and fields are an API.

| name | fields | when |
| --- | --- | --- |
| session.claimed | session, epoch, version, strikes | a node took a session |
| session.released | session, version | it let it go |
| session.unlike | session, lacks | it is left to nodes that have the tools of its open calls |
| session.fenced | session, version | another claim came after ours |
| session.conflict | session, version | our view of a session was behind |
| session.quarantined | session, reason | a session is set aside |
| command.refused | session, command, code | a command could not apply; a late result is one |
| agent.unreadable | tenant, agent, error | an agent whose definition is not understood |
| call.unserved | session, call, kind | no worker has what a call needs |
| letter.refused | session, letter, error | what was owed to another session is not accepted there |
| gate.failed | tenant, error | the gate could not say which tools to offer; none are offered |
| result.dropped | worker, task | a worker brought a result of a task that is not its own |
| store.failed | error | the store cannot be relied on any more |
| store.unavailable | session, error | the store did not answer; it is asked again |
| cluster.unavailable | error | it is not known which nodes are there; the last answer counts |
| message.dropped | error | another node sent what cannot be read |
| recovery.scanned | due | a scan found so many sessions |
| trigger.fired | tenant, trigger, minute | a minute's message was accepted |
| trigger.refused | tenant, trigger, minute, error | its message was not, and will not be |
| trigger.waits | tenant, trigger, minute, error | it could not be sent, and will be sent again |
| trigger.invalid | tenant, trigger, error | the expression of a trigger cannot be read |
| delivery.failed | tenant, delivery, attempts, error | an endpoint did not take a webhook |
| endpoint.disabled | tenant, endpoint, reason | an endpoint is told nothing more |
| service.failed | service, error | a service of the server met an error; it goes on |
"""

from __future__ import annotations

from typing import Any, Protocol


class Telemetry(Protocol):
    """Takes facts about the runtime; never raises, never blocks, gets no payloads."""

    def emit(self, name: str, **fields: Any) -> None:
        """Take one fact."""
        ...
