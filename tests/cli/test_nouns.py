"""`perdure agents`, `triggers`, `hooks`, `gards`, `keys`, `tools`, `workers`: a server's things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.cli.access import access
from perdure.core.errors import InvalidInput
from tests.cli.hosted import Hosted, hosted


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Give one server to all tests of this file."""
    with hosted(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_an_agent_is_made_changed_and_archived(server: Hosted) -> None:
    made = server.one("agents", "create", "writer", "--system-prompt", "You write.")
    assert (made["name"], made["system_prompt"]) == ("writer", "You write.")
    server.ok("agents", "edit", "writer", "--max-steps", "7", "--purpose", "letters")
    assert server.one("agents", "show", "writer")["max_steps"] == 7
    assert server.one("agents", "show", str(made["id"]))["purpose"] == "letters"
    server.ok("agents", "edit", "writer", "--purpose", "")
    assert server.one("agents", "show", "writer")["purpose"] is None
    server.ok("agents", "archive", "writer")
    assert [agent["name"] for agent in server.json("agents", "list")] == ["helper"]


def test_a_list_for_people_has_a_head_and_a_line_for_each(server: Hosted) -> None:
    head, line = server.ok("agents", "list").out.splitlines()
    assert head.split()[:2] == ["id", "name"]
    assert line.split()[1] == "helper"
    assert server.ok("hooks", "list").out == "There are none.\n"


def test_a_trigger_is_paused_resumed_and_fired(server: Hosted) -> None:
    made = server.one(
        *("triggers", "create", "morning", "--agent", "helper", "--cron", "0 9 * * 1-5"),
        *("--message", "Good morning", "--time-zone", "Europe/Berlin", "--catch-up"),
    )
    trigger = str(made["id"])
    assert (made["time_zone"], made["catch_up"], made["enabled"]) == ("Europe/Berlin", True, True)
    assert "paused" in server.ok("triggers", "pause", trigger).out
    assert server.one("triggers", "show", trigger)["enabled"] is False
    server.ok("triggers", "edit", trigger, "--cron", "30 8 * * *", "--no-catch-up")
    changed = server.one("triggers", "resume", trigger)
    assert (changed["cron"], changed["catch_up"], changed["enabled"]) == ("30 8 * * *", False, True)
    assert server.one("triggers", "fire", trigger)["run_id"] > 0
    assert server.ok("triggers", "fire", trigger).out.startswith("run ")
    [line] = server.json("triggers", "list", "--agent", "helper", "--limit", "5")
    assert line["id"] == made["id"]
    assert server.ok("triggers", "delete", trigger).out == f"trigger {trigger} is deleted\n"
    assert server.json("triggers", "list") == []


def test_a_hook_shows_its_token_once_and_reads_its_secret(server: Hosted) -> None:
    made = server.perdure(
        *("hooks", "create", "pushes", "--agent", "helper", "--signature-type", "github"),
        *("--signing-secret", "-"),
        input="s3cret\n",
    )
    assert made.code == 0, made.err
    token = next(line.split()[1] for line in made.out.splitlines() if line.startswith("token"))
    assert made.out.endswith("Keep the token and the path: shown this once.\n")
    [hook] = server.json("hooks", "list")
    assert token not in str(hook)
    assert "s3cret" not in made.out + str(hook)
    server.ok("hooks", "edit", str(hook["id"]), "--message-path", "issue.body")
    assert server.one("hooks", "pause", str(hook["id"]))["enabled"] is False
    shown = server.one("hooks", "show", str(hook["id"]))
    assert (shown["message_path"], shown["token"]) == ("issue.body", None)
    server.ok("hooks", "delete", str(hook["id"]))


def test_an_endpoint_shows_its_secret_once_and_is_told_nothing_while_paused(
    server: Hosted,
) -> None:
    made = server.one(
        *("endpoints", "create", "audit", "--to", "http://127.0.0.1/runs", "--no-enabled"),
        *("--events", "run.failed", "--events", "run.waiting", "--agent", "helper"),
    )
    endpoint = str(made["id"])
    assert made["signing_secret"].startswith("whsec_")
    assert (made["events"], made["enabled"]) == (["run.failed", "run.waiting"], False)
    server.ok("endpoints", "edit", endpoint, "--to", "http://127.0.0.1/all", "--agent", "")
    shown = server.one("endpoints", "show", endpoint)
    assert (shown["url"], shown["agent_id"]) == ("http://127.0.0.1/all", None)
    assert "signing_secret" not in shown
    assert "shown this once" in server.ok("endpoints", "rotate", endpoint).out
    refused = server.perdure("endpoints", "test", endpoint)
    assert (refused.code, "this: the endpoint is not enabled" in refused.err) == (6, True)
    assert server.json("endpoints", "deliveries", endpoint, "--limit", "5") == []
    assert "http://127.0.0.1/all" in server.ok("endpoints", "list").out
    server.ok("endpoints", "delete", endpoint)


def test_a_gard_is_made_renamed_and_destroyed(server: Hosted) -> None:
    made = server.one("gards", "create", "--name", "sandbox", "--metadata", '{"cpu": 2}')
    assert made["claim_token"]
    assert made["metadata"] == {"cpu": 2}
    server.ok("gards", "edit", str(made["id"]), "--name", "workshop")
    assert server.one("gards", "show", str(made["id"]))["name"] == "workshop"
    server.ok("gards", "destroy", str(made["id"]), "--force")
    assert [gard["status"] for gard in server.json("gards", "list")] == ["destroyed"]


def test_a_key_is_made_rotated_and_revoked(server: Hosted) -> None:
    made = server.one("keys", "create", "--name", "ci", "--scope", "read", "--expires-in-s", "60")
    assert server.ok("agents", "list", key=made["key"])
    refused = server.perdure("agents", "create", "x", "--system-prompt", "y", key=made["key"])
    assert (refused.code, "needs the scope admin" in refused.err) == (1, True)
    successor = server.one("keys", "rotate", str(made["id"]))
    server.ok("keys", "revoke", str(made["id"]))
    assert server.ok("agents", "list", key=successor["key"])
    gone = server.perdure("agents", "list", key=made["key"])
    assert (gone.code, gone.out) == (1, "")
    assert "does not know the key" in gone.err
    revoked = {key["id"]: key["revoked_at"] for key in server.json("keys", "list")}
    assert revoked[made["id"]] is not None
    assert revoked[successor["id"]] is None


def test_a_key_of_a_worker_names_what_it_may_do(server: Hosted) -> None:
    both = ("--capabilities", "llm", "--capabilities", "tools")
    assert server.one("keys", "create", *both)["capabilities"] == ["llm", "tools"]


def test_tools_and_workers_are_listed(server: Hosted) -> None:
    assert "stock" in {tool["name"] for tool in server.json("tools", "list")}
    assert [worker["worker_id"] for worker in server.json("workers", "list")] == ["w1"]
    assert "ask_human" in server.ok("tools", "list").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("agents", "show", "nobody"), 3, "there is no agent 'nobody' on the server; its agents"),
        (("triggers", "show", "999"), 3, "there is no trigger 999 on http://127.0.0.1:"),
        (("triggers", "show", "one"), 2, "'one' is not a valid integer"),
        (("agents", "edit", "helper"), 2, "there is nothing to change: give an option"),
        (("keys", "create", "--expires-in-s", "0"), 2, "0 is not in the range x>=1"),
        (("gards", "create", "--metadata", "{"), 2, "is not JSON"),
        (("gards", "create", "--metadata", "[]"), 2, "is JSON, but not an object"),
        (
            ("triggers", "create", "t", "--agent", "helper", "--cron", "x", "--message", "m"),
            2,
            "refused this: cron",
        ),
        (("agents", "list", "--url", "ftp://x"), 2, "expected http://HOST:PORT"),
        (("agents", "list", "--url", "http://127.0.0.1:9"), 1, "no answer from the server"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    server: Hosted, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = server.perdure(*arguments)
    assert (done.code, done.out) == (code, ""), done
    assert said in done.err
    assert "Traceback" not in done.err


def test_the_key_of_this_machine_goes_nowhere_else(
    server: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an admin's, and `--url` may name anybody's server."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".perdure").mkdir()
    (tmp_path / ".perdure" / "dev.key").write_text("nrn_of-this-machine-only")
    done = server.perdure("agents", "list", key=None)
    assert (done.code, f"{server.url} needs an API key" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("noted", "url", "where"),
    [
        (None, None, "http://127.0.0.1:4000"),
        (None, "http://127.0.0.1:4000/", "http://127.0.0.1:4000"),
        (None, "http://localhost:4000", "http://localhost:4000"),
        ("http://127.0.0.1:4567\n", None, "http://127.0.0.1:4567"),
        ("http://127.0.0.1:4567\n", "http://localhost:4567", "http://localhost:4567"),
        ("http://127.0.0.1:4567\n", "http://localhost:4000", "http://localhost:4000"),
        ("http://127.0.0.1:4567\n", "http://localhost:4568", None),
        ("http://127.0.0.1:4567\n", "http://localhost.evil:4567", None),
        ("http://127.0.0.1:1@evil:4567", "http://127.0.0.1:1@evil:4567", None),
        ("http://evil:4567", "http://evil:4567", None),
        ("http://evil:4567", None, "http://127.0.0.1:4000"),
    ],
)
def test_the_server_and_key_of_this_folder_are_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    noted: str | None,
    url: str | None,
    where: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".perdure").mkdir()
    (tmp_path / ".perdure" / "dev.key").write_text("prd_kept")
    if noted is not None:
        (tmp_path / ".perdure" / "dev.url").write_text(noted)
    if where is None:
        with pytest.raises(InvalidInput, match="needs an API key"):
            access(url, None)
    else:
        assert access(url, None)[:2] == (where, "prd_kept")
