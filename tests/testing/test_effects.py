"""Tools that are what they declare pass when they are killed around the call; others are caught."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from textwrap import dedent
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest

from perdure import InvalidInput, PerdureError, ToolContext, tool, wait
from perdure.testing.effects import Effects, Place, Violation, check_effects
from perdure.testing.mutants import broken
from tests.docs.pages import ROOT

KILLS = 24
KILLS_TO_CATCH = 16


class Shop:
    """A far end outside of every process that is killed: a file, of which each line is an effect.

    It honours a key where it is asked to, as one whole step.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def done(self) -> list[str]:
        """Return what was done."""
        return self._path.read_text(encoding="utf-8").splitlines()

    def do(self, what: str) -> None:
        """Do it, however often it was done before."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(what + "\n")

    def do_once(self, key: str) -> None:
        """Do it, if nothing with this key was done before."""
        if key not in self.done():
            self.do(key)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop.txt")


def checked(made: Any, shop: Shop, **more: Any) -> Effects:
    """Kill a tool of no arguments, as often as the suite does."""
    return check_effects(made, arguments={}, far_end=shop.done, **{"kills": KILLS, **more})


def wrong(made: Any, shop: Shop) -> str:
    """Return what is said of a tool that must not pass."""
    with pytest.raises(AssertionError) as caught:
        checked(made, shop, kills=KILLS_TO_CATCH).check()
    return str(caught.value)


class TestToolsThatAreWhatTheyDeclare:
    """They pass wherever they are killed."""

    def test_a_read_leaves_everything_as_it_was(self, shop: Shop) -> None:
        @tool(effect="read")
        def look() -> list[str]:
            return shop.done()

        found = checked(look, shop)
        found.check()
        assert found.kills == KILLS
        assert sum(place.effects for place in found.places) == 0

    def test_an_idempotent_one_is_called_again_and_has_one_effect(self, shop: Shop) -> None:
        @tool(effect="idempotent")
        def ship(ctx: ToolContext) -> str:
            shop.do_once(ctx.key)
            return "shipped"

        found = checked(ship, shop)
        found.check()
        runs = sum(place.runs for place in found.places)
        assert sum(place.effects for place in found.places) == runs
        assert sum(place.calls for place in found.places) > runs

    def test_a_once_is_called_once_and_every_doubt_is_shown(self, shop: Shop) -> None:
        @tool(effect="once")
        def pay(ctx: ToolContext) -> str:
            shop.do(ctx.key)
            return "paid"

        found = checked(pay, shop)
        found.check()
        assert all(place.calls <= place.runs for place in found.places)
        after = next(place for place in found.places if place.place == "tool.after")
        assert (after.calls, after.effects, after.in_doubt) == (after.runs,) * 3

    def test_what_the_model_is_told_is_a_doubt_that_is_shown(self, shop: Shop) -> None:
        @tool
        def undeclared() -> str:
            shop.do("something")
            return "done"

        checked(undeclared, shop).check()

    def test_a_once_with_an_honest_probe_always_ends_with_its_effect(self, shop: Shop) -> None:
        @tool(effect="once", probe=lambda key: key in shop.done())
        def pay(ctx: ToolContext) -> str:
            shop.do(ctx.key)
            return "paid"

        found = checked(pay, shop)
        found.check()
        assert all(place.effects == place.runs for place in found.places)
        assert any(place.in_doubt for place in found.places)

    def test_an_async_one_is_killed_at_its_awaits(self, shop: Shop) -> None:
        @tool(effect="once", probe=lambda key: key in shop.done())
        async def pay(ctx: ToolContext) -> str:
            await asyncio.sleep(0)
            shop.do(ctx.key)
            await asyncio.sleep(0)
            return "paid"

        found = checked(pay, shop)
        found.check()
        assert any("a step after tool.before" in place.place for place in found.places)

    def test_an_isolated_one_is_gone_before_the_far_end_is_counted(
        self, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its own process may outlive the one that was killed by a moment."""
        module = tmp_path / "isolated_tool.py"
        module.write_text(
            "from pathlib import Path\n"
            "from perdure import tool\n"
            "@tool(effect='once', isolated=True)\n"
            "def pay(to: str) -> str:\n"
            "    with Path(to).open('a') as file:\n"
            "        file.write('paid\\n')\n"
            "    return 'paid'\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        import isolated_tool

        found = check_effects(
            isolated_tool.pay,
            arguments={"to": str(tmp_path / "shop.txt")},
            far_end=shop.done,
            kills=8,
        )
        found.check()

    def test_a_far_end_may_be_a_server_in_the_process_of_the_test(self) -> None:
        """One that serves in order is asked when nothing is in flight any more."""
        with payment_server() as url:

            @tool(effect="idempotent")
            def pay(ctx: ToolContext) -> str:
                with urlopen(url, data=ctx.key.encode()) as reply:
                    return str(reply.read().decode())

            def payments() -> list[str]:
                with urlopen(url) as reply:
                    return list(json.loads(reply.read()))

            found = check_effects(pay, arguments={}, far_end=payments, kills=KILLS)
        found.check()
        assert found.kills == KILLS


@contextmanager
def payment_server() -> Iterator[str]:
    """Serve one request after the other: POST pays once for each key, GET lists the keys."""
    paid: dict[str, None] = {}

    class Payments(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            key = self.rfile.read(size).decode()
            if len(key) == size:  # who died while he asked has asked for nothing
                paid[key] = None
                self.answer(b"paid")

        def do_GET(self) -> None:
            self.answer(json.dumps([*paid]).encode())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *more: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Payments) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class TestToolsThatAreNot:
    """Each is caught, with the reason."""

    def test_a_read_that_writes(self, shop: Shop) -> None:
        @tool(effect="read")
        def look() -> str:
            shop.do("noted who looked")
            return "seen"

        assert "it declares `read`, and changed the far end (1 more, 0 less)" in wrong(look, shop)

    def test_a_read_that_writes_only_when_it_is_repeated(self, shop: Shop, tmp_path: Path) -> None:
        @tool(effect="read")
        def look(ctx: ToolContext) -> str:
            mark = tmp_path / ctx.key
            if mark.exists():
                shop.do("complained of the repeat")
            mark.touch()
            return "seen"

        assert "it declares `read`, and changed the far end (1 more, 0 less)" in wrong(look, shop)

    def test_an_idempotent_one_that_ignores_the_key(self, shop: Shop) -> None:
        @tool(effect="idempotent")
        def ship() -> str:
            shop.do("a parcel")
            return "shipped"

        assert "2 calls with one key had 2 effects, not 1: hand ctx.key" in wrong(ship, shop)

    def test_an_idempotent_one_that_is_not_atomic(self, shop: Shop) -> None:
        """The key is taken with the first half: the repeat leaves out the other."""

        @tool(effect="idempotent")
        def ship(ctx: ToolContext) -> str:
            if f"{ctx.key} label" not in shop.done():
                shop.do(f"{ctx.key} label")
                shop.do(f"{ctx.key} parcel")
            return "shipped"

        said = wrong(ship, shop)
        assert "recorded as done after 2 calls, with 1 of 2 effects" in said

    def test_a_once_with_a_probe_that_denies_what_happened(self, shop: Shop) -> None:
        @tool(effect="once", probe=lambda key: False)
        def pay(ctx: ToolContext) -> str:
            shop.do(ctx.key)
            return "paid"

        said = wrong(pay, shop)
        assert "the probe said that it did not happen, and the far end had 1 of 1 effects" in said
        assert "one call had 2 effects, not 1" in said

    def test_a_once_with_a_probe_that_claims_what_did_not_happen(self, shop: Shop) -> None:
        @tool(effect="once", probe=lambda key: True)
        def pay(ctx: ToolContext) -> str:
            shop.do(ctx.key)
            return "paid"

        said = wrong(pay, shop)
        assert "the probe said that it happened, and the far end had 0 of 1 effects" in said

    @pytest.mark.parametrize(
        ("mutant", "said"),
        [
            ("unknown_dropped", "nobody was told that attempt 1 is in doubt"),
            ("once_sent_again", "2 calls, where its declaration allows 1"),
            ("key_not_stable", "2 calls with one key had 2 effects, not 1"),
        ],
    )
    def test_an_engine_that_breaks_the_promise(self, shop: Shop, mutant: str, said: str) -> None:
        @tool(effect="idempotent" if mutant == "key_not_stable" else "once")
        def pay(ctx: ToolContext) -> str:
            shop.do_once(ctx.key)
            return "paid"

        with broken(mutant):
            assert said in wrong(pay, shop)


class TestTheReport:
    """What is handed back, and said."""

    def test_it_is_a_table_with_what_was_wrong_and_how_to_see_it_again(self) -> None:
        report = Effects(
            tool="pay",
            effect="once",
            seed=1,
            kills=3,
            places=(Place("pay.py:7", runs=2, kills=3, calls=2, effects=3, in_doubt=1, wrong=1),),
            violations=(Violation("pay.py:7", "user.line:3", "one call had 2 effects, not 1"),),
            seconds=1.25,
        )
        assert report.table().splitlines() == [
            "pay declares `once`: 2 runs, 3 kills, wrong: 1 (seed 1, 1.2 s)",
            "",
            "killed at  runs  kills  calls  effects  in doubt  wrong",
            "pay.py:7      2      3      2        3         1      1",
            "",
            'WRONG, pay.py:7 (at="user.line:3"): one call had 2 effects, not 1',
        ]

    def test_a_run_of_it_can_be_repeated(self, shop: Shop) -> None:
        @tool(effect="idempotent")
        def ship() -> str:
            shop.do("a parcel")
            return "shipped"

        first = checked(ship, shop).violations[0]
        [again] = checked(ship, shop, at=first.at).violations
        assert again == first

    def test_a_seed_chooses_the_same_places(self, shop: Shop) -> None:
        @tool(effect="idempotent")
        def ship(ctx: ToolContext) -> str:
            shop.do_once(ctx.key)
            return "shipped"

        def places(seed: int) -> set[str]:
            found = checked(ship, shop, kills=8, seed=seed).places
            # Steps between threads are not always as many.
            return {place.place for place in found if "step" not in place.place}

        assert places(1) == places(1)


class TestBadInput:
    """It is said what was wrong, before anything is killed."""

    def refusal(self, made: Any, shop: Shop, **more: Any) -> str:
        with pytest.raises(InvalidInput) as caught:
            checked(made, shop, **more)
        return str(caught.value)

    def test_what_is_no_tool(self, shop: Shop) -> None:
        assert "check_effects takes a tool" in self.refusal(print, shop)

    def test_a_tool_that_the_runtime_carries_out(self, shop: Shop) -> None:
        assert "'wait' is carried out by the runtime" in self.refusal(wait, shop)

    def test_arguments_that_are_not_the_tools(self, shop: Shop) -> None:
        @tool(effect="read")
        def look(place: str) -> str:
            return place

        assert "`place`" in self.refusal(look, shop)

    def test_no_kills(self, shop: Shop) -> None:
        @tool(effect="read")
        def look() -> str:
            return ""

        assert "kills is 1 or more, not 0" in self.refusal(look, shop, kills=0)

    @pytest.mark.parametrize("seconds", [0, float("inf")])
    def test_lives_without_an_end(self, shop: Shop, seconds: float) -> None:
        @tool(effect="read")
        def look() -> str:
            return ""

        said = self.refusal(look, shop, life_seconds_max=seconds)
        assert said == f"life_seconds_max is a number of seconds, not {seconds!r}"

    def test_a_far_end_that_cannot_be_counted(self, shop: Shop) -> None:
        @tool(effect="read")
        def look() -> str:
            return ""

        with pytest.raises(InvalidInput, match="far_end returns an item for each effect"):
            check_effects(look, arguments={}, far_end=lambda: "paid")

    def test_a_far_end_that_does_not_see_what_the_tool_does(self, shop: Shop) -> None:
        @tool(effect="once")
        def pay() -> str:
            return "paid"

        assert "far_end() was the same before and after" in self.refusal(pay, shop)

    def test_a_call_that_fails_undisturbed(self, shop: Shop) -> None:
        @tool(effect="once")
        def pay() -> str:
            raise ValueError("no funds")

        said = self.refusal(pay, shop)
        assert "'pay' does not even succeed undisturbed" in said
        assert "no funds" in said

    def test_a_call_that_never_ends(self, shop: Shop) -> None:
        @tool(effect="read")
        async def look() -> str:
            await asyncio.Event().wait()
            return ""

        assert "give it more time" in self.refusal(look, shop, life_seconds_max=1)

    def test_a_tool_whose_process_fails(self, shop: Shop) -> None:
        @tool(effect="read")
        def look() -> str:
            print("no way out", file=sys.stderr, flush=True)
            os._exit(7)

        with pytest.raises(PerdureError, match=r"(?s)called 'look' failed:.*no way out"):
            checked(look, shop)

    def test_a_tool_that_leaves_something_running(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody could say when the far end may be counted."""
        monkeypatch.setattr("perdure.testing.effects.life.LINGER_SECONDS_MAX", 0)

        @tool(effect="read")
        def look() -> str:
            subprocess.Popen(["sleep", "4"], start_new_session=True)
            return ""

        with pytest.raises(PerdureError, match="something that 'look' has started was still there"):
            checked(look, shop, life_seconds_max=2)

    async def test_a_test_with_an_event_loop(self, shop: Shop) -> None:
        @tool(effect="read")
        def look() -> str:
            return ""

        assert "call it from a test that is not async" in self.refusal(look, shop)


class TestThePlugin:
    """The fixture that comes with perdure, as somebody else's tests use it."""

    THEIRS = """
        import pytest
        from perdure import tool

        @pytest.fixture
        def shop(tmp_path):
            path = tmp_path / "shop.txt"
            path.touch()
            return path

        @pytest.mark.effects(kills=2)
        def test_ship(shop, effects):
            @tool(effect="idempotent")
            def ship():
                with shop.open("a") as file:
                    file.write("a parcel\\n")

            found = effects(ship, arguments={}, far_end=lambda: shop.read_text().splitlines())

        @pytest.mark.effects(kills=2)
        def test_look(shop, effects):
            @tool(effect="read")
            def look():
                return shop.read_text()

            print(effects(look, arguments={}, far_end=shop.read_text().splitlines).table())
        """

    def run(self, folder: Path, *options: str) -> str:
        """Run their tests in a process of their own; return what is printed."""
        (folder / "test_theirs.py").write_text(dedent(self.THEIRS), encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
        command = [sys.executable, "-m", "pytest", "-rP", *options]
        ran = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        return ran.stdout + ran.stderr

    def test_a_tool_that_is_not_what_it_declares_fails_its_test(self, tmp_path: Path) -> None:
        said = self.run(tmp_path)
        assert "1 failed, 1 passed" in said
        assert "AssertionError: ship declares `idempotent`: 3 runs, 2 kills" in said
        assert "look declares `read`: 3 runs, 2 kills, wrong: 0 (seed 1" in said

    def test_the_command_line_has_the_last_word(self, tmp_path: Path) -> None:
        said = self.run(tmp_path, "-k", "look", "--effects-kills", "1", "--effects-seed", "7")
        assert "look declares `read`: 2 runs, 1 kills, wrong: 0 (seed 7" in said


class TestOurExamples:
    """Every tool of `examples/` is what it declares."""

    def example(self, name: str) -> dict[str, Any]:
        return runpy.run_path(str(ROOT / "examples" / name))

    def in_no_time(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return a tool that does not wait for a reader to kill it."""
        patient = SimpleNamespace(sleep=lambda seconds: None)
        monkeypatch.setitem(made.function.__globals__, "time", patient)
        return made

    def test_the_refund(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        effects: Callable[..., Effects],
    ) -> None:
        payments = tmp_path / "payments.jsonl"
        payments.touch()
        monkeypatch.setenv("REFUND_PAYMENTS", str(payments))
        refund = self.in_no_time(self.example("refund.py")["refund"], monkeypatch)

        def paid() -> list[str]:
            lines = payments.read_text(encoding="utf-8").splitlines()
            return [json.loads(line)["key"] for line in lines]

        arguments = {"order": "42", "cents": 1999}
        found = effects(refund, arguments=arguments, far_end=paid, kills=KILLS)
        assert any(place.place.startswith("refund.py:") for place in found.places)

    def test_the_packer_of_the_quickstart(
        self,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        effects: Callable[..., Effects],
    ) -> None:
        """Who reads what it prints knows an order that is packed again by its key."""
        pack = self.in_no_time(self.example("quickstart.py")["pack"], monkeypatch)
        packed: dict[str, int] = {}

        def orders() -> dict[str, int]:
            printed = capfd.readouterr().out.splitlines()
            packed.update((line, 1) for line in printed if line.startswith("packing order"))
            return packed

        effects(pack, arguments={"order": 1}, far_end=orders, kills=KILLS)

    @pytest.mark.effects(kills=KILLS)
    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("list_files", {}),
            ("search_text", {"text": "tea"}),
            ("read_file", {"path": "tea.md"}),
            ("save_note", {"title": "Tea", "text": "A drink."}),
        ],
    )
    def test_the_librarian(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        effects: Callable[..., Effects],
        name: str,
        arguments: dict[str, Any],
    ) -> None:
        (tmp_path / "tea.md").write_text("About tea.\n", encoding="utf-8")
        monkeypatch.setenv("LIBRARIAN_ROOT", str(tmp_path))

        def files() -> list[tuple[str, bytes]]:
            found = (file for file in tmp_path.rglob("*") if file.is_file())
            return [(str(file), file.read_bytes()) for file in found]

        effects(self.example("librarian.py")[name], arguments=arguments, far_end=files)
