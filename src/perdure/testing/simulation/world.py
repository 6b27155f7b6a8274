"""A simulated world: machines, clients, people and bad luck around one store, by one seed.

First it is rough for some seconds of virtual time; then everything heals, and whatever was accepted
has to come to an end within `HEALED_US_MAX`. Runs that wait for the clock are waited for: all nodes
are stopped, and the time jumps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from perdure.adapters.stores.memory import MemoryStore
from perdure.core.errors import PerdureError, Unavailable
from perdure.core.ids import SessionId
from perdure.core.runs import TERMINAL, RunRow
from perdure.ports import faults
from perdure.ports.session_store import RunQuery
from perdure.runtime.node import Node
from perdure.testing.simulation.cast import Cast
from perdure.testing.simulation.clock import EPOCH_MS
from perdure.testing.simulation.ledger import Ledger, Operation
from perdure.testing.simulation.lives import Life, Machine, Trap
from perdure.testing.simulation.loop import Livelock, VirtualLoop
from perdure.testing.simulation.observer import Observer
from perdure.testing.simulation.plan import Action, Plan, plan
from perdure.testing.simulation.store import Server, Waiting, perform
from perdure.testing.simulation.weather import Weather

TICK_US = 400_000
HEALED_US_MAX = 120_000_000
JUMP_MS_MIN = 8_000
NEVER_MS = 1 << 62
AIMED_US_MAX = 6_000_000
RESTART_US_MAX = 4_000_000
ROWS = RunQuery(tenant="default", limit=1_000)
Work = Callable[[], Coroutine[Any, Any, Any]]
OVER = TERMINAL | {"merged"}


class World:
    """One run of one seed."""

    def __init__(self, seed: int, cast: Cast) -> None:
        self.seed = seed
        self.plan: Plan = plan(random.Random(seed * 2).random)
        chance = random.Random(seed * 2 + 1)
        self.draw = chance.random
        self.loop = VirtualLoop(chance)
        self.ledger = Ledger()
        self.weather = Weather(self.draw)
        self.store = MemoryStore(lambda: EPOCH_MS + self.loop.now_us // 1000)
        self.observer = Observer(self.loop, self.store, self.ledger)
        self.server = Server(self.store, self.loop, self.observer)
        self.observer.on_takeover = self._wake_the_fenced
        self.machines = [
            Machine(f"n{number}", self.loop, chance) for number in range(self.plan.machines)
        ]
        self.healed_at_us = 0
        self.finished = False
        self._chance = chance
        self._cast = cast
        self._jumping = False
        self._aimed: set[tuple[str, str]] = set()
        self._in_doubt: set[tuple[Any, ...]] = set()
        self._by_process: dict[Any, Life] = {}
        cast.stage = self

    # ---------------------------------------------------------------------- what the cast asks for

    def now_us(self) -> int:
        """Return the true time."""
        return self.loop.now_us

    def life(self) -> str:
        """Return the name of the process that is at work."""
        return self.loop.current.name

    async def travel(self, seconds: float, act: Callable[[], str]) -> str:
        """Have a request arrive later, whatever becomes of its sender; return its answer."""
        loop, sender = self.loop, self.loop.current
        answer = loop.create_future()

        def arrive() -> None:
            done = act()
            if not sender.dead:
                loop.schedule(sender, loop.now_us, _settle, answer, done)

        loop.schedule(loop.world, loop.now_us + int(seconds * 1e6), arrive)
        return str(await answer)

    # ------------------------------------------------------------------------------- the whole run

    def run(self) -> None:
        """Live through the seed; what went wrong is in `observer.violations`."""
        loop = self.loop
        faults.install(self._reach)
        try:
            for machine in self.machines:
                self._start(machine)
            for action in self.plan.actions:
                loop.schedule(loop.world, action.at_us, self._act, action)
            loop.schedule(loop.world, TICK_US, self._tick)
            loop.run(lambda: self.finished)
        except Livelock as error:
            self.observer.wrong(f"livelock: {error}")
        finally:
            faults.install(None)
        if not self.finished and not self.observer.violations:
            self.observer.wrong("everything stopped before the world had come to its end")
        for life in self._by_process.values():
            life.process.dead = True
        self.observer.probes["late effect refused"] += self.ledger.refused
        self.observer.violations += loop.troubles
        for task in loop.tasks:
            if task.done() and not task.cancelled():
                unseen = task.exception()
                if isinstance(unseen, Exception):
                    self.observer.violations.append(f"a task failed unseen: {unseen!r}")

    def close(self) -> None:
        """Let go of everything."""
        self.loop.close()
        self._cast.stage = None
        self._by_process.clear()

    def rows(self) -> list[RunRow]:
        """Return the rows of all runs as they are in the store."""
        return perform(self.store.list(ROWS))

    def _reach(self, site: str) -> None:
        life = self._by_process.get(self.loop.current)
        if life is not None and (pause_us := life.reach(site)):
            self._pause(life, pause_us)

    # ------------------------------------------------------------------------------------ machines

    def _start(self, machine: Machine) -> None:
        machine.restarting = False
        if self.finished or (machine.life is not None and not machine.life.over):
            return
        machine.lives += 1
        life = Life(
            f"{machine.name}.{machine.lives}",
            machine.clock,
            self.loop,
            self.server,
            self.weather,
            self._chance,
            self.observer,
            self._cast,
        )
        machine.life = life
        if machine.curses and not self.healed_at_us:
            machine.curses -= 1
            life.armed = Trap("claim.after", 1)
        self._by_process[life.process] = life
        self.loop.spawn(life.process, life.start())

    def _start_later(self, machine: Machine) -> None:
        if not machine.restarting:
            machine.restarting = True
            delay_us = int(RESTART_US_MAX * self.draw() ** 2)
            loop = self.loop
            loop.schedule(loop.world, loop.now_us + delay_us, self._start, machine)

    def _resume(self, life: Life) -> None:
        if life.process.paused:
            self.loop.resume(life.process)

    def _wake_the_fenced(self, name: str) -> None:
        """Somebody took a session from a paused node: the worst moment for it to go on."""
        for life in self._lives():
            if life.name == name and life.process.paused and self.draw() < 0.7:
                loop = self.loop
                delay_us = int((5_000 if self.draw() < 0.5 else 300_000) * self.draw())
                loop.schedule(loop.world, loop.now_us + delay_us, self._resume, life)

    def _lives(self) -> list[Life]:
        return [machine.life for machine in self.machines if machine.life is not None]

    # -------------------------------------------------------------------------------- what happens

    def _act(self, action: Action) -> None:
        if not self.healed_at_us:
            getattr(self, f"_do_{action.what}")(*action.arguments)

    def _do_crash(self, number: int) -> None:
        life = self.machines[number].life
        if life is not None and not life.over:
            life.kill()

    def _do_arm(self, number: int, *trap: Any) -> None:
        life = self.machines[number].life
        if life is not None:
            life.armed = Trap(*trap)

    def _do_curse(self, number: int, lives: int) -> None:
        self.machines[number].curses = lives
        self._do_crash(number)

    def _do_pause(self, number: int, for_us: int) -> None:
        life = self.machines[number].life
        if life is not None and not life.over:
            self._pause(life, for_us)

    def _pause(self, life: Life, for_us: int) -> None:
        self.observer.counts["pauses"] += 1
        self.observer.was_paused.add(life.name)
        life.process.paused = True
        loop = self.loop
        loop.schedule(loop.world, loop.now_us + for_us, self._resume, life)

    def _do_drain(self, number: int) -> None:
        life = self.machines[number].life
        if life is not None and life.serving:
            self._drain(life)

    def _do_skew(self, number: int, skew_ms: int) -> None:
        self.machines[number].clock.skew_ms = skew_ms
        self.observer.counts["skews"] += 1

    def _drain(self, life: Life) -> None:
        self.observer.counts["drains"] += 1
        for session, holder in self.observer.holders.items():
            if holder == life.name:
                calls = self.observer.traces[session].calls.values()
                begun = any(call.status == "begun" for call in calls)
                self.observer.probes["drain with a once call begun"] += begun
        self.loop.spawn(life.process, life.stop())

    # ------------------------------------------------------------------------------------- clients

    def _serving(self) -> Life | None:
        serving = [life for life in self._lives() if life.serving]
        return serving[int(self.draw() * len(serving))] if serving else None

    def _do_send(self, agent: str, key: str, mode: Any, number: int, name: str | None) -> None:
        life = self._serving()
        if life is None:
            return

        async def send(node: Node) -> str:
            run = await node.send(
                agent, f"message {number}", session=key, mode=mode, idempotency_key=name
            )
            known = run.receipt is not None and run.receipt.duplicate
            self.observer.repeated(known and (agent, key, name) in self._in_doubt)
            return run.id

        again = (agent, key, mode, number, name) if name is not None else None
        self._ask(life, "send", (agent, key, name), lambda: send(life.node), again)

    def _do_cancel(self, which: float) -> None:
        rows, life = self.rows(), self._serving()
        if rows and life is not None:
            run = rows[int(which * len(rows))].id
            self._ask(life, "cancel", (run,), lambda: life.node.cancel(run))

    def _do_retry(self, which: float) -> None:
        rows, life = [row for row in self.rows() if row.status in TERMINAL], self._serving()
        if rows and life is not None:
            run = rows[int(which * len(rows))].id

            async def retry(node: Node) -> str:
                return (await node.retry(run)).id

            self._ask(life, "retry", (run,), lambda: retry(life.node))

    def _do_fork(self, which: float, where: float, says: bool) -> None:
        rows = [row for row in self.rows() if row.status in TERMINAL or row.status == "waiting"]
        life = self._serving()
        if rows and life is not None:
            row = rows[int(which * len(rows))]
            step = int(where * (row.steps + 1))

            async def fork(node: Node) -> str:
                return (await node.fork(row.id, step, "message 9" if says else None)).id

            self._ask(life, "fork", (row.id,), lambda: fork(life.node))

    def _ask(
        self,
        life: Life,
        kind: str,
        subject: tuple[Any, ...],
        work: Work,
        again: tuple[Any, ...] | None = None,
    ) -> None:
        """Have a client ask a node something; what stays in doubt is asked `again`."""
        operation = Operation(self.loop.now_us, kind, life.name, subject)
        self.ledger.operations.append(operation)
        self.loop.spawn(life.process, self._record(operation, work, again))

    async def _record(
        self,
        operation: Operation,
        work: Work,
        again: tuple[Any, ...] | None,
    ) -> None:
        try:
            operation.detail = await work()
            operation.status = "ok"
        except Unavailable:
            operation.status = "in doubt"
            if again is not None:
                self._in_doubt.add(operation.subject)
                loop = self.loop
                loop.schedule(loop.world, loop.now_us + TICK_US, self._do_send, *again)
        except PerdureError as error:
            operation.status = "failed"
            operation.detail = type(error).__name__

    # -------------------------------------------------------------------------------------- people

    def _people(self, rows: list[RunRow]) -> None:
        """Answer what is asked, sooner or later; say the truth about what is in doubt."""
        for row in rows:
            for wait in row.waiting_for:
                if wait["what"] not in ("answer", "decision", "approval"):
                    continue
                life = self._serving()
                if life is None or (not self.healed_at_us and self.draw() > self.plan.patience):
                    continue
                if wait["what"] == "answer":
                    self._reply(life, row, wait["call"])
                elif wait["what"] == "approval":
                    self._approve(life, row, wait["call"], wait["digest"])
                else:
                    self._resolve(life, row, wait["call"], wait["attempt"])

    def _reply(self, life: Life, row: RunRow, call: str) -> None:
        """Answer now; or, when the run waits for the clock too, just before its time."""
        due = [wait["due_at"] for wait in row.waiting_for if wait["what"] == "time"]
        wait_us = (min(due) - EPOCH_MS - 4) * 1000 - self.loop.now_us if due else 0
        if 0 < wait_us < AIMED_US_MAX and self.draw() < 0.85:
            if (row.id, call) not in self._aimed:
                self._aimed.add((row.id, call))
                loop = self.loop
                loop.schedule(loop.world, loop.now_us + wait_us, self._reply, life, row, call)
            return
        if life.serving:
            self._ask(
                life, "reply", (row.id, call), lambda: life.node.reply(row.id, "Go on.", call=call)
            )

    def _resolve(self, life: Life, row: RunRow, call: str, attempt: int) -> None:
        how: Any = "tell_model"
        if self.draw() < 0.8:
            happened = self.ledger.happened((row.session, call), attempt)
            how = "happened" if happened else "did_not_happen"
        subject = (row.id, call, how)
        self._ask(
            life,
            "resolve",
            subject,
            lambda: life.node.resolve(row.id, call, how, attempt=attempt),
        )

    def _approve(self, life: Life, row: RunRow, call: str, digest: str) -> None:
        how: Any = "approve" if self.draw() < 0.8 else "deny"
        self._ask(
            life,
            "decide",
            (row.id, call, how),
            lambda: life.node.decide(row.id, how, call=call, digest=digest),
        )

    # ---------------------------------------------------------------------------------- the course

    def _tick(self) -> None:
        loop = self.loop
        for machine in self.machines:
            life = machine.life
            if life is not None and life.failed and not life.over and not life.process.paused:
                life.end()
            if life is not None and life.over and not self._jumping:
                self._start_later(machine)
        rows = self.rows()
        if not self.healed_at_us:
            if loop.now_us >= self.plan.rough_us:
                self._heal()
        elif not self._jumping:
            self._come_to_an_end(rows)
        if self.finished:
            return
        if not self._jumping:
            self._people(rows)
        loop.schedule(loop.world, loop.now_us + TICK_US, self._tick)

    def _heal(self) -> None:
        self.healed_at_us = self.loop.now_us
        self.weather.heal()
        for machine in self.machines:
            machine.clock.skew_ms = 0
            if machine.life is not None:
                machine.life.armed = None
                when_us = self.loop.now_us + int(2 * TICK_US * self.draw())
                self.loop.schedule(self.loop.world, when_us, self._resume, machine.life)

    def _come_to_an_end(self, rows: list[RunRow]) -> None:
        """Finish when nothing is left to do; jump when only the clock can go on."""
        for session in tuple(self.observer.inboxes):
            self._release_by_hand(session)
        left = [row for row in rows if row.status not in OVER]
        owed = any(trace.owed for trace in self.observer.traces.values())
        if not left and not owed and not any(self.observer.inboxes.values()):
            self.finished = True
            return
        if self.loop.now_us - self.healed_at_us > HEALED_US_MAX:
            stuck = [(str(row.session), row.id, row.status, row.waiting_for) for row in left]
            inboxes = {str(s): sorted(i) for s, i in self.observer.inboxes.items() if i}
            letters = {str(s): sorted(t.owed) for s, t in self.observer.traces.items() if t.owed}
            self.observer.wrong(f"stuck: {stuck}, inboxes {inboxes}, letters {letters}")
            self.finished = True
            return
        self._nudge_the_lazy(left)
        now = EPOCH_MS + self.loop.now_us // 1000
        at = [_only_time(row) for row in left if row.status != "queued"]
        times = [time for time in at if time is not None]
        if times and len(times) == len(at) and now + JUMP_MS_MIN < min(times) < NEVER_MS:
            self._jump(min(times) - now)

    def _nudge_the_lazy(self, rows: list[RunRow]) -> None:
        """A lazy session whose node died goes on when it is told something."""
        alive = {life.name for life in self._lives() if not life.over}
        for row in rows:
            held = self.observer.holders.get(row.session) in alive
            asleep = row.session.agent == "lazy" and not held
            if asleep and not self.observer.inboxes[row.session]:
                self._do_send("lazy", row.session.key, "queue", 99, None)

    def _release_by_hand(self, session: SessionId) -> None:
        try:
            loaded = perform(self.store.load(session))
        except Waiting:
            return
        if loaded is not None and loaded.quarantine is not None:
            life = self._serving()
            if life is not None:
                node, agent, key = life.node, session.agent, session.key
                self._ask(life, "release", (str(session),), lambda: node.release(agent, key))

    def _jump(self, by_ms: int) -> None:
        """Stop all nodes, and start them again when the clock has something for them."""
        self._jumping = True
        self.observer.counts["jumps"] += 1
        for life in self._lives():
            if life.serving:
                self._drain(life)
        self.healed_at_us += by_ms * 1000
        loop = self.loop
        loop.schedule(loop.world, loop.now_us + by_ms * 1000, self._wake)

    def _wake(self) -> None:
        self._jumping = False
        for machine in self.machines:
            self._start(machine)


def _settle(answer: asyncio.Future[str], done: str) -> None:
    if not answer.done():
        answer.set_result(done)


def _only_time(row: RunRow) -> int | None:
    """Return when a run goes on by itself, if it waits for nothing but the clock."""
    waits = [wait for wait in row.waiting_for if wait["what"] != "child"]
    if row.status != "waiting" or any(w["what"] not in ("time", "retry") for w in waits):
        return None
    return min((int(wait["due_at"]) for wait in waits), default=NEVER_MS)
