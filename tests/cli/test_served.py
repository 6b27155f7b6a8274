"""`perdure send`, and `perdure runs` and `sessions` of a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.cli.progress import describe_waiting
from tests.cli.hosted import Hosted, hosted


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Give one server to all tests of this file."""
    with hosted(tmp_path_factory.mktemp("server")) as server:
        yield server


def waiting(server: Hosted) -> str:
    """Return a run that asks a person."""
    done = server.perdure("send", "helper", "ask me", "--wait", "--json")
    assert done.code == 9, done
    return str(done.lines[0]["id"])


def test_a_message_is_sent_and_its_run_goes_on_by_itself(server: Hosted) -> None:
    sent = server.ok("send", "helper", "hello")
    assert sent.out.strip().isdecimal()
    assert server.ok("runs", "tail", sent.out.strip()).out.endswith("You said hello.\n")
    assert server.one("agents", "send", "helper", "hello")["run_id"] > int(sent.out)


def test_whoever_waits_gets_the_answer_and_nothing_else(server: Hosted) -> None:
    assert server.ok("send", "helper", "hello", "--wait").out == "You said hello.\n"
    assert server.one("send", "helper", "the stock?", "--wait")["output"] == "I got 3."


def test_the_same_key_gives_the_same_run(server: Hosted) -> None:
    sent = ("send", "helper", "hello", "--idempotency-key", "k1")
    assert server.ok(*sent).out == server.ok(*sent).out


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        ("fail", 4, "The run is failed: no such model"),
        ("ask me", 9, "perdure runs reply"),
    ],
)
def test_how_a_run_ended_is_the_exit_code(
    server: Hosted, message: str, code: int, said: str
) -> None:
    done = server.perdure("send", "helper", message, "--wait")
    assert (done.code, said in done.out) == (code, True), done


def test_a_run_that_takes_longer_goes_on(server: Hosted) -> None:
    done = server.perdure("send", "helper", "sleep", "--timeout", "0.05")
    assert (done.code, done.out) == (1, "")
    run = done.err.rpartition("perdure runs tail ")[2].strip()
    assert "has not ended within 0.05 s, and goes on" in done.err
    assert server.one("runs", "show", run)["status"] in ("running", "waiting")
    assert server.ok("runs", "cancel", run).out == f"run {run} is cancelled\n"


def test_a_busy_session_rejects_who_says_so(server: Hosted) -> None:
    server.perdure("send", "helper", "sleep", "--session", "busy")
    done = server.perdure("send", "helper", "and?", "--session", "busy", "--mode", "reject")
    assert (done.code, "refused this: agent is busy" in done.err) == (6, True), done
    [run] = server.json("runs", "list", "--agent", "helper", "--session", "busy")
    assert server.perdure("runs", "cancel", str(run["id"])).code == 0


def test_a_question_is_answered_and_the_run_followed(server: Hosted) -> None:
    run = waiting(server)
    assert "Shall I?\n  perdure runs reply" in server.ok("runs", "show", run).out
    assert server.perdure("runs", "tail", run).code == 9
    followed = server.ok("runs", "reply", run, "yes please").out
    assert "waiting_for_user" not in followed, "what was before the reply is not told again"
    assert followed.endswith("I got yes please.\n")
    again = server.perdure("runs", "reply", run, "yes")
    assert (again.code, "refused this: run is not waiting for input" in again.err) == (6, True)


def test_a_worker_that_is_missing_is_shown(server: Hosted) -> None:
    server.ok("agents", "create", "alone", "--system-prompt", "x", "--model", "a:b")
    run = server.ok("send", "alone", "hello").out.strip()
    told = server.ok("runs", "show", run).out
    assert "waits for a worker with llm for agent 'alone'" in told, told
    assert "perdure worker FILE.py:NAME\n" in told


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        (
            {"what": "release", "call": "", "needs": "its log is broken"},
            "Its session is in quarantine: its log is broken\n  perdure sessions release 7 --url u",
        ),
        (
            {"what": "worker", "call": "1.1.m0", "needs": "a worker with llm for agent 'a'"},
            (
                "Call 1.1.m0 waits for a worker with llm for agent 'a': one that was cut off may "
                "come back with it, else start one\n  perdure worker FILE.py:NAME --url u"
            ),
        ),
        (
            {"what": "time", "call": "1.1.t0", "due_at": "2026-07-26T10:11:12.500000Z"},
            "Call 1.1.t0 waits until 2026-07-26 10:11:12Z, and goes on by itself",
        ),
        (
            {"what": "retry", "call": "1.1.m0", "due_at": 1_000},
            "A model call failed; it is made again by itself at 1970-01-01 00:00:01Z",
        ),
    ],
)
def test_whatever_a_run_waits_for_is_said_in_words(wait: dict[str, Any], told: str) -> None:
    assert describe_waiting(3, [wait], " --url u", 7) == told


def test_what_a_person_has_to_do_is_said_first() -> None:
    later = {"what": "time", "call": "1.1.t0", "due_at": 1_000}
    asked = {"what": "answer", "call": "1.1.t1", "question": "Shall I?"}
    assert describe_waiting(3, [later, asked]).startswith("Shall I?\n  perdure runs reply 3")


def test_a_reply_need_not_be_followed(server: Hosted) -> None:
    run = waiting(server)
    assert server.ok("runs", "reply", run, "yes", "--no-follow").out == ""
    assert server.ok("runs", "tail", run).out.endswith("I got yes.\n")


def test_a_run_is_cancelled_and_listed_so(server: Hosted) -> None:
    run = waiting(server)
    server.ok("runs", "cancel", run, "--reason", "enough")
    shown = server.one("runs", "show", run)
    assert (shown["row_status"], shown["failure_metadata"]["error"]) == ("cancelled", "enough")
    listed = server.json("runs", "list", "--status", "cancelled", "--limit", "1")
    assert [one["id"] for one in listed] == [int(run)]
    assert server.perdure("runs", "tail", run).code == 5


def test_only_a_call_in_doubt_is_resolved(server: Hosted) -> None:
    done = server.perdure("runs", "resolve", waiting(server), "1.1.t0", "did-not-happen")
    assert (done.code, "refused this: call '1.1.t0' is not owed" in done.err) == (6, True), done


def test_a_failed_run_is_retried_as_a_new_one(server: Hosted) -> None:
    run = server.perdure("send", "helper", "fail", "--wait", "--json").lines[0]["id"]
    retried = server.perdure("runs", "retry", str(run), "--json")
    assert (retried.code, retried.lines[-1]["status"]) == (4, "failed")
    assert retried.lines[-1]["id"] != run


def test_a_run_is_gone_on_with_from_its_middle(server: Hosted) -> None:
    run = str(server.one("send", "helper", "the stock?", "--wait")["id"])
    forked = server.ok("runs", "fork", run, "--step", "1", "--message", "hello")
    assert forked.out.endswith("You said hello.\n")
    beyond = server.perdure("runs", "fork", run, "--step", "9")
    assert (beyond.code, "is beyond the run's last step" in beyond.err) == (2, True)


def test_events_are_lines_or_objects(server: Hosted) -> None:
    run = str(server.one("send", "helper", "the stock?", "--wait")["id"])
    types = [event["event_type"] for event in server.json("runs", "events", run)]
    assert types[0] == "run_started"
    assert types[-1] == "run_completed"
    told = server.ok("runs", "events", run, "--after", "3").out
    assert "tool_call            1.1.t0 stock(item=tea)" in told
    assert "tool_result          1.1.t0 stock: 3" in told
    assert "run_started" not in told


def test_sessions_are_listed_named_archived_and_restored(server: Hosted) -> None:
    server.ok("send", "helper", "hello", "--session", "letters", "--wait")
    [session] = [one for one in server.json("sessions", "list") if one["key"] == "letters"]
    number = str(session["id"])
    assert server.one("sessions", "name", number, "--title", "To Ann")["title"] == "To Ann"
    assert '"content":"You said hello."' in server.ok("sessions", "show", number).out
    server.ok("sessions", "archive", number)
    assert [one["id"] for one in server.json("sessions", "list", "--archived")] == [session["id"]]
    server.ok("sessions", "restore", number)
    assert "letters" in server.ok("sessions", "list").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("send", "nobody", "x"), 3, "there is no agent 'nobody' on the server"),
        (("runs", "show", "0199"), 3, "there is no run 199 on http://127.0.0.1:"),
        (("runs", "cancel", "99"), 3, "there is no run 99 on http://127.0.0.1:"),
        (("runs", "reply", "99", "yes"), 3, "there is no run 99 on http://127.0.0.1:"),
        (("runs", "resolve", "99", "c", "happened"), 3, "there is no run 99 on http://127.0.0.1:"),
        (("agents", "show", "99"), 3, "there is no agent 99 on http://127.0.0.1:"),
        (("keys", "revoke", "99"), 3, "there is no key 99 on http://127.0.0.1:"),
        (("sessions", "show", "99"), 3, "there is no session 99 on http://127.0.0.1:"),
        (("runs", "show", "abc"), 2, "'abc' is no run of a server"),
        (("runs", "list", "--session", "s"), 2, "--session needs --agent"),
        (("runs", "reply", "1", "yes", "--by", "me"), 2, "--by is for a store"),
        (("runs", "list", "--url", "http://x", "--store", "sqlite:///s"), 2, "give one of them"),
        (("sessions", "list", "--quarantined"), 2, "--quarantined is for a store"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    server: Hosted, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = server.perdure(*arguments)
    assert (done.code, done.out) == (code, ""), done
    assert said in done.err
    assert "Warning" not in done.err


def test_a_store_on_the_command_line_wins_over_a_server_of_the_environment(
    server: Hosted, tmp_path: Path
) -> None:
    done = server.perdure("runs", "list", "--store", f"sqlite:///{tmp_path}/none.db")
    assert (done.code, "there is no store at" in done.err) == (3, True)
