"""Rare situations that a simulation has to reach: a proof that never met them proves little.

They are told from outside: from the store's log as it grows, from telemetry, and from the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping

PROBES: Mapping[str, str] = {
    "result after cancel": "a tool's result came when its run had been cancelled",
    "late report refused": "a worker reported on a call that it did not hold any more",
    "duplicate delivery": "a command was accepted a second time, and known",
    "accept in doubt, then repeated": "an accept had no answer, and its repeat was known",
    "fence inside a batch": "a step was fenced while others of its session were behind it",
    "timer and answer together": "a timer and an answer were under way to the disk together",
    "steer during compaction": "a steering message came while the history was being folded",
    "interrupt during a tool call": "an interrupting message ended a run with a call under way",
    "cancel before the run began": "a run was withdrawn from the inbox",
    "crash between accept and deliver": "a node died with a command accepted and not delivered",
    "crash after begin before effect": "a node died with a once call begun that had not acted",
    "crash after effect before record": "a node died with an effect that was not recorded",
    "crash during recovery": "a node died when it had claimed a session, or scanned",
    "crash during a retry": "a node died between a failed model call and the next attempt",
    "crash after a snapshot": "a node died when a session of its had a snapshot, which was used",
    "probe says happened": "a call of unknown outcome was settled by its probe",
    "probe says it did not": "a call of unknown outcome was sent again on its probe's word",
    "probe is undecided": "a probe could not tell",
    "a person decides": "a person said what became of a call",
    "the model hears of doubt": "an unknown outcome was told to the model",
    "lease lost in a once call": "another node took a session with a once call begun",
    "paused and fenced": "a node came back from a pause and its step was refused",
    "renewed too late": "a node renewed a lease that had run out, and dropped its sessions",
    "deadline during a question": "a run's time was over while it waited for a person",
    "drain with a once call begun": "a node was asked to stop while a once call was under way",
    "conflict and reload": "a node's view was behind, and it loaded the session anew",
    "strike then quarantine": "a session that killed its host too often was set aside",
    "postponed survives": "a waiting message was still there when its session was let go",
    "two nodes race": "a node asked for a session that another one held",
    "commit landed, answer lost": "a step was durable, and its node never heard of it",
    "claim landed, answer lost": "a session was claimed, and its node never heard of it",
    "lost and sent again": "a call whose worker was lost got a second attempt",
    "given up": "a call was lost as often as it may be",
    "a run retried": "a failed or cancelled run was gone on with",
    "a run forked": "a new session went on from the middle of a run",
    "a letter twice": "a child told its end a second time, which was known",
    "crash with letters owed": "a node died when its session owed another one a letter",
    "a child launched again": "a child failed and was launched again",
    "a child taken along": "a child was cancelled because nobody waited for it any more",
    "a child in a busy session": "a launch found another run in its session, and was refused",
    "late effect refused": "an effect came after its far end had said that it never will",
    "woken by a skewed clock": "a timer fired minutes before or after its true time",
}
