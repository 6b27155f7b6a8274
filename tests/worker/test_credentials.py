"""Credentials: resolved at the call, kept while they may be, renewed when they are refused."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure import (
    Agent,
    Credential,
    CredentialError,
    CredentialRefused,
    InvalidInput,
    ModelError,
    ModelReply,
    ModelRequest,
    Runtime,
    Secret,
    Tool,
    ToolContext,
    tool,
)
from perdure.adapters import credentials as credentials_adapter
from perdure.adapters.credentials import ENTRY_POINTS, providers
from perdure.core.commands import ReportToolBegin
from perdure.testing.clock import FakeClock
from perdure.testing.stub_provider import Received, StubProvider, status
from perdure.testing.stub_script import Item
from perdure.worker.credentials import Credentials
from tests.worker.helpers import Desk
from tests.worker.isolated_tools import spell_key

VALUE = "canary-of-a-credential"


class Vault:
    """A provider with what it is told, which counts how often it is asked."""

    def __init__(self, *values: Any, lease_ms: int | None = None, clock: Any = None) -> None:
        self.values = list(values)
        self.asked: list[str] = []
        self.lease_ms = lease_ms
        self.clock = clock

    @classmethod
    def full(cls) -> Vault:
        """Return one with a value, as what is installed does."""
        return cls(VALUE)

    async def resolve(self, reference: str) -> Credential:
        """Give the next value; the last one for good."""
        self.asked.append(reference)
        await asyncio.sleep(0)
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        if isinstance(value, BaseException):
            raise value
        until = None if self.lease_ms is None else self.clock.now_ms() + self.lease_ms
        return Credential(Secret(value), until)


def desk(vault: Vault, *tools: Tool[..., Any], **more: Any) -> Desk:
    """Return a worker whose agent has the credential `shop` in a vault."""
    agent = {"credentials": {"shop": "vault:shop"} | more.pop("credentials", {})}
    return Desk(*tools, agent=agent, credential_providers={"vault": vault}, **more)


# -------------------------------------------------------------------------------------- a secret


def test_a_secret_shows_itself_only_when_it_is_asked_to() -> None:
    """Whatever else is done with it shows something else, or fails."""
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    assert secret == Secret(VALUE) != Secret("another")
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret:>40}"):
        assert VALUE not in shown
    for shown in (repr(Credential(secret)), repr(ToolContext(key="k", credentials={"a": secret}))):
        assert VALUE not in shown
    attempts: list[Callable[[Any], Any]] = [
        pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode, vars, list, bytes,
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(TypeError) as refused:
            attempt(secret)
        assert VALUE not in str(refused.value)
    assert VALUE not in json.dumps({"s": secret}, default=repr)
    assert VALUE not in msgspec.json.encode({"s": secret}, enc_hook=repr).decode()


# ------------------------------------------------------------------------------ where they are


async def test_the_environment_and_files_are_read_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was replaced counts at once; its line ends are not part of the secret."""
    kept = tmp_path / "key"
    credentials = Credentials(providers({}), FakeClock())
    for value in ("the first value", "the second value"):
        kept.write_text(value + "\n")
        monkeypatch.setenv("SHOP_KEY", value)
        assert (await credentials.get(f"file:{kept}")).reveal() == value
        assert (await credentials.get("env:SHOP_KEY")).reveal() == value


@pytest.mark.parametrize(
    "content,says",
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe-not-text", "expected UTF-8 text"),
        (b"x" * 70_000, "at most 65536 bytes"),
        (b"short", "fewer than 8 characters"),
    ],
)
async def test_a_file_that_holds_no_secret_is_said_so(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    """With its path, and without its content."""
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(CredentialError, match=says) as missing:
        await Credentials(providers({}), FakeClock()).get(f"file:{tmp_path}/key")
    assert "not-text" not in str(missing.value)


async def test_a_variable_that_is_not_set_is_named() -> None:
    """So that somebody can set it."""
    with pytest.raises(CredentialError, match="variable NO_SUCH_KEY is not set"):
        await Credentials(providers({}), FakeClock()).get("env:NO_SUCH_KEY")


async def test_what_may_be_kept_is_kept_until_it_expires() -> None:
    """And what says nothing is resolved for every call."""
    clock = FakeClock()
    leased = Vault("the first value", "the second value", lease_ms=60_000, clock=clock)
    credentials = Credentials({"vault": leased}, clock)
    for at_ms, value in (
        (0, "the first value"),
        (59_999, "the first value"),
        (1, "the second value"),
    ):
        clock.advance(at_ms)
        assert (await credentials.get("vault:a")).reveal() == value
    assert len(leased.asked) == 2
    bare = Vault(VALUE)
    credentials = Credentials({"vault": bare}, clock)
    await credentials.get("vault:a")
    await credentials.get("vault:a")
    assert len(bare.asked) == 2


async def test_who_asks_at_the_same_time_shares_one_question() -> None:
    """One that gives up leaves the answer to the others."""
    vault = Vault(VALUE)
    credentials = Credentials({"vault": vault}, FakeClock())
    asking = [asyncio.create_task(credentials.get("vault:a")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [Secret(VALUE)] * 49
    assert vault.asked == ["vault:a"]


async def test_a_provider_that_hangs_is_given_up() -> None:
    """A call has a right to an end."""
    clock = FakeClock()

    class Hanging:
        async def resolve(self, reference: str) -> Credential:
            await asyncio.Event().wait()
            raise AssertionError

    credentials = Credentials({"vault": Hanging()}, clock)
    asking = asyncio.create_task(credentials.get("vault:a"))
    for _ in range(3):
        await asyncio.sleep(0)
    clock.advance(10_000)
    with pytest.raises(CredentialError, match="did not answer within 10 s"):
        await asking


async def test_of_what_a_provider_raises_only_the_class_is_told() -> None:
    """Its text may hold the token that it was asked with. What it says on purpose is told."""
    credentials = Credentials({"vault": Vault(RuntimeError(f"denied: {VALUE}"))}, FakeClock())
    with pytest.raises(CredentialError) as failed:
        await credentials.get("vault:a")
    assert str(failed.value) == "its provider raised RuntimeError"
    assert failed.value.transient
    credentials = Credentials({"vault": Vault(CredentialError("no such path"))}, FakeClock())
    with pytest.raises(CredentialError, match="no such path"):
        await credentials.get("vault:a")


def test_a_reference_that_nobody_here_resolves_is_refused_at_once() -> None:
    """Before anything is stored of it; `user:password` is not repeated."""
    agent = Agent("a", model="openai:gpt-5", credentials={"model": "admin:hunter2hunter2"})
    with pytest.raises(InvalidInput, match=r"credentials\['model'\]; known are env, file") as no:
        Credentials(providers({}), FakeClock()).check(agent.spec)
    assert "hunter2" not in str(no.value)
    assert "admin" not in str(no.value)
    with pytest.raises(InvalidInput, match="is a str without `async def resolve"):
        providers({"vault": "hvs.token"})  # type: ignore[dict-item]


async def test_a_runtime_refuses_it_before_it_opens_anything(tmp_path: Path) -> None:
    """With a provider for it, it starts."""
    agent = Agent("a", model=lambda request: "hi", credentials={"shop": "vault:x"})
    url = f"sqlite:///{tmp_path}/p.db"
    with pytest.raises(InvalidInput, match="no provider resolves"):
        await Runtime(url, [agent]).start()
    async with Runtime(url, [agent], credential_providers={"vault": Vault(VALUE)}) as node:
        assert await (await node.send("a", "hello")).result() == "hi"


# ---------------------------------------------------------------------------------- for tools


@tool(effect="read", credentials=["shop"])
def spell(ctx: ToolContext) -> str:
    """Say how the key is spelt, without saying it."""
    return "-".join(ctx.credential("shop"))


@tool(effect="once", credentials=["shop"])
async def spell_async(ctx: ToolContext) -> str:
    """Do it on the loop."""
    return "-".join(ctx.credential("shop"))


@pytest.mark.parametrize("one", [spell, spell_async, spell_key])
async def test_a_tool_is_handed_what_it_declares(one: Tool[..., Any]) -> None:
    """On the loop, in a thread, in a process of its own."""
    async with desk(Vault(VALUE), one) as at:
        report = await at.call()
        assert (report.ok, report.content) == (True, "-".join(VALUE))


async def test_a_tool_gets_nothing_that_it_does_not_declare() -> None:
    """What the agent has for others is not resolved."""

    @tool(effect="read")
    def curious(ctx: ToolContext) -> str:
        return ctx.credential("shop")

    vault = Vault(VALUE)
    async with desk(vault, curious) as at:
        report = await at.call()
        assert not report.ok
        assert "declares no credential 'shop'" in report.content
        assert vault.asked == []


async def test_without_its_credential_a_tool_does_not_even_begin() -> None:
    """So a `once` call is not in doubt: the model is told that nothing was done."""
    async with desk(Vault(CredentialError("sealed")), spell_async) as at:
        at.start(at.tool_task())
        report = await at.next()
        assert not isinstance(report, ReportToolBegin)
        assert (report.ok, report.kind) == (False, "no_credential")
        assert report.content == (
            "The tool was not run: the credential 'shop' cannot be had: sealed"
        )


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tool_whose_credential_is_refused_gets_another(is_async: bool) -> None:
    """Once, if there is another by now; under the same key."""
    keys = []

    def attempt(ctx: ToolContext) -> str:
        keys.append(ctx.key)
        if ctx.credential("shop") == "the old value":
            raise CredentialRefused("401")
        return "paid"

    async def attempt_async(ctx: ToolContext) -> str:
        return attempt(ctx)

    pay = tool(name="pay", effect="once", credentials=["shop"])(
        attempt_async if is_async else attempt
    )
    clock = FakeClock()
    vault = Vault("the old value", "the new value", lease_ms=10**9, clock=clock)
    async with desk(vault, pay) as at:
        report = await at.call()
        assert (report.ok, report.content) == (True, "paid")
    assert keys == ["key-1", "key-1"]
    async with desk(Vault("the old value"), pay) as at:
        report = await at.call()
        assert (report.ok, report.kind) == (False, "credential_refused")
    assert len(keys) == 3


async def test_a_probe_has_the_credentials_of_its_tool() -> None:
    """It asks the same far end."""

    def look(key: str, ctx: ToolContext) -> bool:
        return ctx.credential("shop") == VALUE

    pay = tool(name="pay", effect="once", credentials=["shop"], probe=look)(lambda: None)
    async with desk(Vault(VALUE), pay) as at:
        report = await at.finish(at.tool_task(probing=True))
        assert report.verdict == "happened"
    async with desk(Vault(CredentialError("sealed")), pay) as at:
        report = await at.finish(at.tool_task(probing=True))
        assert report.verdict == "undecided"


@pytest.mark.parametrize(
    "names", [["sk-live-abcdefgh"], ["model"], [""], ["q7Zk2Lm9Xc4Vb1Nd8Ws5Rt3Yf6Gh0Jp"]]
)
def test_a_tool_declares_names_and_no_secrets(names: list[str]) -> None:
    """They are not repeated."""
    with pytest.raises(InvalidInput, match="credentials are names") as refused:
        tool(name="pay", credentials=names)(lambda: None)
    assert names[0] in ("", "model") or names[0] not in str(refused.value)


def test_what_a_tool_declares_its_agent_says_where() -> None:
    """It is known when the agent is made, not at the first call."""
    with pytest.raises(InvalidInput, match="tool 'spell' needs the credential 'shop'"):
        Agent("a", model="openai:gpt-5", tools=[spell])
    with pytest.raises(InvalidInput, match="is the key of a named model"):
        Agent("a", model=lambda request: "", credentials={"model": "env:KEY"})


# ---------------------------------------------------------------------------------- for models


class Provider:
    """A model provider that accepts some keys."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = accepted
        self.made: list[tuple[str, str | None]] = []
        self.closed: list[str | None] = []

    def resolve(self, name: str, api_key: str | None = None) -> Any:
        """Return the model with a name, which has a key."""
        self.made.append((name, api_key))
        provider = self

        class Keyed:
            async def reply(self, request: ModelRequest, on_text: Any) -> ModelReply:
                if api_key not in provider.accepted:
                    raise ModelError(f"invalid key: {api_key}", status=401)
                return ModelReply("Good day")

            async def aclose(self) -> None:
                provider.closed.append(api_key)

        return Keyed()


async def test_a_model_is_asked_with_the_key_that_its_agent_names() -> None:
    """One that is replaced is used from the next call on, and its model closed."""
    provider = Provider("the first value", "the second value")
    vault = Vault("the first value", "the first value", "the second value")
    at = desk(vault, model="openai:a", resolve=provider.resolve, credentials={"model": "vault:m"})
    async with at:
        for _ in range(3):
            assert (await at.finish(at.model_task())).reply.content == "Good day"
        assert provider.made == [("openai:a", "the first value"), ("openai:a", "the second value")]
        assert provider.closed == ["the first value"]
    assert provider.closed == ["the first value", "the second value"]


async def test_a_key_that_is_refused_is_read_again_once() -> None:
    """If it is still the same, it was wrong: nothing is gained by asking twice."""
    clock = FakeClock()
    provider = Provider("the new value")
    vault = Vault("the old value", "the new value", lease_ms=10**9, clock=clock)
    at = desk(vault, model="openai:a", resolve=provider.resolve, credentials={"model": "vault:m"})
    async with at:
        assert (await at.finish(at.model_task())).reply.content == "Good day"
    provider = Provider()
    at = desk(
        Vault("the old value"), model="openai:a", resolve=provider.resolve,
        credentials={"model": "vault:m"},
    )  # fmt: skip
    async with at:
        report = await at.finish(at.model_task())
        assert (report.code, report.message) == ("not_authorised", "invalid key: [secret]")
        assert len(provider.made) == 1


async def test_a_key_goes_to_no_other_provider() -> None:
    """Whatever a server says the model is."""
    provider = Provider(None)  # type: ignore[arg-type]
    vault = Vault(VALUE)
    at = desk(vault, model="openai:a", resolve=provider.resolve, credentials={"model": "vault:m"})
    async with at:
        await at.finish(at.model_task(model="other:b"))
        assert provider.made == [("other:b", None)]
        assert vault.asked == []


@pytest.mark.parametrize(
    "error,error_class",
    [(CredentialError("sealed"), "validation"), (OSError("down"), "transient")],
)
async def test_a_key_that_cannot_be_had_is_said_so(error: Exception, error_class: str) -> None:
    """What may pass is tried again."""
    at = desk(
        Vault(error), model="openai:a", resolve=Provider().resolve,
        credentials={"model": "vault:m"},
    )  # fmt: skip
    async with at:
        report = await at.finish(at.model_task())
        assert (report.error_class, report.code) == (error_class, "missing_api_key")
        assert report.message.startswith("the key for openai:a cannot be had: ")


async def test_a_file_that_is_replaced_is_the_key_of_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, in the middle of a session, also when the provider finds out before we do."""
    kept = tmp_path / "key"

    def answer(request: Received) -> Item:
        key = request.headers["authorization"].removeprefix("Bearer ")
        if key != valid[0]:
            kept.write_text(valid[0])  # as whoever rotates keys does, only late
            return status(401, message=f"Incorrect API key provided: {key}")
        return f"I know the key of {len(key)} characters."

    with StubProvider(answer) as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.openai_url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        agent = Agent("a", model="openai:x", credentials={"model": f"file:{kept}"})
        async with Runtime(agents=[agent]) as node:
            for valid in (["the-first-key"], ["the-second-one"], ["the-last"]):
                if len(stub.requests) < 2:
                    kept.write_text(valid[0])
                run = await node.send("a", "hello", session="s")
                assert await run.result() == f"I know the key of {len(valid[0])} characters."
    used = [request.headers["authorization"].removeprefix("Bearer ") for request in stub.requests]
    assert used == ["the-first-key", "the-second-one", "the-second-one", "the-last"]


async def test_a_provider_may_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point, whose name is the scheme; what a program hands over comes before it."""
    points = [
        EntryPoint("vault", f"{__name__}:Vault.full", ENTRY_POINTS),
        EntryPoint("gone", "no_such_module:Vault", ENTRY_POINTS),
    ]
    monkeypatch.setattr(
        credentials_adapter, "entry_points", lambda group: points if group == ENTRY_POINTS else []
    )
    found = providers({})
    assert set(found) == {"env", "file", "vault", "gone"}
    for _ in range(2):
        assert (await found["vault"].resolve("vault:x")).value.reveal() == VALUE
    with pytest.raises(CredentialError, match="cannot be loaded: ModuleNotFoundError"):
        await found["gone"].resolve("gone:x")
    given = Vault(VALUE)
    assert providers({"vault": given})["vault"] is given
