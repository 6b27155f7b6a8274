"""`perdure policy`, with the files and the output that docs/howto/policy.md shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perdure.cli.main import main
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "howto" / "policy.md"
AGENT = ("--agent", "agents.py:support")
CALL = ("--tool", "refund", "--arguments", '{"cents": 9900}')
MADE = {each.mark.removeprefix("file: "): each for each in blocks(PAGE) if "file: " in each.mark}
SHOWN = [each.text for each in blocks(PAGE) if each.language == "text"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with the files that the page shows, and work in it."""
    for name, block in MADE.items():
        (tmp_path / name).write_text(block.text, encoding="utf-8")
    changed = MADE["policy.toml"].text.replace("5000", "9000").replace("small-", "tiny-")
    (tmp_path / "new.toml").write_text(changed, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def perdure(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, ["policy", *arguments])


def lines(done: Result) -> list[dict[str, object]]:
    """Return what `--json` printed."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_valid_policy_is_valid() -> None:
    done = perdure("check", "policy.toml", *AGENT)
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.startswith("valid  shop, version ")
    [fields] = lines(perdure("check", "policy.toml", "--json"))
    assert (fields["rules"], fields["warnings"]) == (2, [])


def test_the_same_policy_in_json_has_the_same_version(folder: Path) -> None:
    from perdure.policy.policy import Policy

    policy = Policy.from_toml((folder / "policy.toml").read_text())
    (folder / "policy.json").write_bytes(policy.body)
    [fields] = lines(perdure("check", "policy.json", "--json"))
    assert fields["version"] == policy.version


def test_warnings_are_shown_and_are_no_errors(folder: Path) -> None:
    text = (folder / "policy.toml").read_text().replace('["refund"]', '["refnd"]', 1)
    (folder / "policy.toml").write_text(text)
    done = perdure("check", "policy.toml", *AGENT)
    assert done.exit_code == 0
    assert "warning: rule 'small-refunds' can never match the given agents" in done.stdout


@pytest.mark.parametrize("name", ["check", "explain", "test", "diff", "prove"])
def test_an_invalid_policy_is_refused_with_its_line(folder: Path, name: str) -> None:
    (folder / "policy.toml").write_text('version = 1\nname = "x"\n[[rule]]\nid = "a b"\n')
    more = {
        "explain": (*AGENT, *CALL),
        "test": ("cases.toml",),
        "diff": ("policy.toml",),
        "prove": (*AGENT, "never refund"),
    }
    done = perdure(name, "policy.toml", *more.get(name, ()))
    assert done.exit_code == 2
    assert "perdure: policy.toml:4: rule 1 ('a b'): 'id': found 'a b', expected" in done.stderr


def test_explain_says_what_the_page_says() -> None:
    done = perdure("explain", "policy.toml", *AGENT, *CALL)
    assert (done.exit_code, done.stdout) == (0, SHOWN[0])
    [fields] = lines(perdure("explain", "policy.toml", *AGENT, *CALL, "--json"))
    assert fields["verdict"]["rule"] == "large-refunds"


def test_explain_takes_a_time_and_a_tenant(folder: Path) -> None:
    with (folder / "policy.toml").open("a") as file:
        file.write('tenants = ["acme"]\nhours = { from = "09:00", to = "17:00" }\n')

    def says(*more: str) -> str:
        return perdure("explain", "policy.toml", *AGENT, *CALL, *more).stdout

    assert says("--at", "2026-01-05T09:30:00Z", "--tenant", "acme").startswith("ask, by large-")
    assert "tenants: it is default, not acme; hours: it is mon 08:59, not" in says(
        "--at", "2026-01-05T08:59:00Z"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--tool", "refnd"),
            "agent 'support' has no tool 'refnd'; its tools are: refund, look_up",
        ),
        (("--tool", "refund", "--arguments", "[1]"), "expected a JSON object, found [1]"),
        (
            ("--tool", "refund", "--arguments", "{"),
            "--arguments: expected a JSON object: Expecting",
        ),
        (("--tool", "refund", "--at", "noon"), "--at: found 'noon', expected a time as 2026-01-05"),
    ],
)
def test_a_call_that_is_none_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = perdure("explain", "policy.toml", *AGENT, *arguments)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_cases_that_pass_and_cases_that_fail() -> None:
    done = perdure("test", "policy.toml", "cases.toml", *AGENT)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "2 cases, 0 failed")
    done = perdure("test", "new.toml", "cases.toml", *AGENT)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "2 cases, 0 failed")
    done = perdure("test", "policy.toml", "cases.toml", *AGENT, "--json")
    assert [fields["ok"] for fields in lines(done)] == [True, True]


def test_a_failed_case_shows_what_was_found(folder: Path) -> None:
    text = (folder / "cases.toml").read_text().replace('"ask"', '"deny"')
    (folder / "cases.toml").write_text(text)
    done = perdure("test", "policy.toml", "cases.toml", *AGENT)
    assert done.exit_code == 1
    assert (
        "FAILED  a large one is asked about  deny (large-refunds)  ask (large-refunds)"
        in done.stdout
    )
    assert done.stdout.endswith("2 cases, 1 failed\n")


def test_a_case_of_a_tool_that_its_agent_has_not_is_named(folder: Path) -> None:
    text = (folder / "cases.toml").read_text().replace('"refund"', '"refnd"')
    (folder / "cases.toml").write_text(text)
    done = perdure("test", "policy.toml", "cases.toml", *AGENT)
    assert (done.exit_code, "cases.toml: case 1: agent 'support' has no tool" in done.stderr) == (
        2,
        True,
    )


def test_diff_shows_rules_and_verdicts() -> None:
    done = perdure("diff", "policy.toml", "new.toml", "--cases", "cases.toml")
    assert done.exit_code == 0
    assert "rule small-refunds removed\nrule tiny-refunds added\n" in done.stdout
    assert "rule large-refunds changed: arguments\n" in done.stdout
    assert "-> allow (tiny-refunds): " in done.stdout
    found = lines(perdure("diff", "policy.toml", "new.toml", "--json"))
    changes = [each for each in found if "example" in each]
    assert 5000 < changes[0]["example"]["arguments"]["cents"] <= 9000
    assert perdure("diff", "new.toml", "new.toml").stdout.endswith("0 changes of verdicts\n")


def test_prove_shows_a_call_that_can_be_explained() -> None:
    pytest.importorskip("z3")
    done = perdure("prove", "policy.toml", *AGENT, "never refund")
    shown = SHOWN[1].partition("refund {")[0]
    assert (done.exit_code, done.stdout.startswith(shown)) == (1, True), done.stdout
    assert "see: perdure policy explain policy.toml --agent " in done.stdout
    [fields] = lines(perdure("prove", "policy.toml", *AGENT, "never refund", "--json"))
    example = fields["example"]
    again = perdure(
        *("explain", "policy.toml", *AGENT, "--tool", "refund", "--at", example["at"]),
        *("--arguments", json.dumps(example["arguments"]), "--tenant", example["tenant"]),
    )
    assert again.stdout.startswith("allow, by small-refunds")


def test_prove_says_never(folder: Path) -> None:
    pytest.importorskip("z3")
    text = (folder / "policy.toml").read_text().replace('["refund"]', '["look_up"]')
    (folder / "policy.toml").write_text(text)
    done = perdure("prove", "policy.toml", *AGENT, "never refund")
    assert (done.exit_code, done.stdout) == (
        0,
        "never: agent 'support' cannot call 'refund', whatever it says\n",
    )


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("always refund", "a claim is \"never TOOL\", not 'always refund'"),
        ("never", "a claim is \"never TOOL\", not 'never'"),
        ("never refnd", "agent 'support' has no tool 'refnd'"),
    ],
)
def test_a_claim_that_is_none_is_refused(claim: str, said: str) -> None:
    done = perdure("prove", "policy.toml", *AGENT, claim)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_without_the_engine_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "perdure.adapters.policy.prover", raising=False)
    monkeypatch.setitem(sys.modules, "z3", None)
    done = perdure("prove", "policy.toml", *AGENT, "never refund")
    assert (done.exit_code, "pip install 'perdure[prove]'" in done.stderr) == (2, True)


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "policy.toml").write_bytes(b"\xff\xfe")
    done = perdure("check", "policy.toml")
    assert (done.exit_code, "policy.toml: expected text in UTF-8" in done.stderr) == (2, True)
