------------------------------- MODULE Handover -------------------------------
(* A call that its session's node has no worker for, executed on another node.

   The owner of the session lends the call over the bus; a holder is a node with
   a fitting worker that was lent an attempt of it. What must not be lost goes
   into the session's inbox, durably and under an id of its own: that a holder
   wants to begin a `once` call, and the result. Whoever owns the session then
   consumes it, commits, and tells the holder to proceed.

   The bus loses, repeats and reorders: what was sent on it may arrive at any
   later moment, as often as it likes, or never. Owners are not told that they
   are owners no more: they go on sending by what they know. Their commits are
   refused; that is what Lease.tla is about, and taken for granted here. A
   holder, a worker or an owner that died is one that does nothing more: nodes
   that start again have another name. Whoever asks around, offers or waits is
   left out: Seek and Bid, the question who holds a call, and every timeout only
   choose a moment, and here everything may happen at any moment.

   Flaws is {} for the protocol itself. Each flaw takes one of its rules away;
   then an invariant has to fail.                                             *)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS Owner, Holder, Effects, AttemptsMax, ClaimsMax, Flaws

VARIABLES
  effect,    \* the class that the tool declared: "idempotent" or "once"
  call,      \* the call, as the session's log tells it
  owner,     \* the node whose claim is the newest
  claims,    \* how many claims there were
  known,     \* what each owner, present or past, knows of the call
  inbox,     \* what was accepted for the session: begins and results, consumed or not
  lends,     \* on the bus: an attempt for a holder
  proceeds,  \* on the bus: a holder may run its attempt
  results,   \* on the bus, in one of the flaws: a result for one owner
  holds,     \* what each holder does with each attempt that it was lent
  acts,      \* how often the tool ran
  untold,    \* has the owner committed a beginning, and told nobody to proceed?
  told,      \* results of which a worker was told that they are safe: it forgets them
  outcomes   \* how many outcomes the log has

vars == <<effect, call, owner, claims, known, inbox, lends, proceeds, results, holds, acts, told,
          outcomes, untold>>

Flaw(name) == name \in Flaws

Attempts == 1..AttemptsMax
Holds == Holder \X Attempts
Nobody == "nobody"
Intended(attempt) == [status |-> "intended", attempt |-> attempt, holder |-> Nobody]
Ignorance == [status |-> "nothing", attempt |-> 0, holder |-> Nobody]

Init ==
  /\ effect \in Effects
  /\ call = Intended(1) /\ claims = 1 /\ outcomes = 0
  /\ \E first \in Owner :
       owner = first /\ known = [n \in Owner |-> IF n = first THEN Intended(1) ELSE Ignorance]
  /\ inbox = {} /\ lends = {} /\ proceeds = {} /\ results = {} /\ told = {}
  /\ holds = [hold \in Holds |-> "none"] /\ acts = 0 /\ untold = FALSE

------------------------------------------------------------------------------
(* The session: claims, commits, and what its inbox says.                     *)

\* A claim reads the log; what the session owes is in it, and in the inbox.
Claim(n) ==
  /\ n # owner /\ claims < ClaimsMax
  /\ owner' = n /\ claims' = claims + 1 /\ known' = [known EXCEPT ![n] = call] /\ untold' = FALSE
  /\ UNCHANGED <<effect, call, inbox, lends, proceeds, results, holds, acts, told, outcomes>>

\* Only the owner's commit counts; it consumes inbox entries together with what follows from them.
Commit(after, entries) ==
  /\ call' = after /\ known' = [known EXCEPT ![owner] = after]
  /\ inbox' = (inbox \ entries) \cup {[entry EXCEPT !.waiting = FALSE] : entry \in entries}

Entry(kind, holder, attempt) ==
  [kind |-> kind, holder |-> holder, attempt |-> attempt, waiting |-> TRUE]

\* Accepting needs no ownership; an entry that is known already is not accepted again.
Accept(kind, hold) ==
  IF Entry(kind, hold[1], hold[2]) \in inbox
     \/ [Entry(kind, hold[1], hold[2]) EXCEPT !.waiting = FALSE] \in inbox
  THEN inbox ELSE inbox \cup {Entry(kind, hold[1], hold[2])}

\* A holder asks to begin: it may, if this attempt is open and nobody has begun it.
ConsumeBegin(entry) ==
  /\ entry.waiting /\ entry.kind = "begin"
  /\ IF call.status = "intended" /\ call.attempt = entry.attempt
     THEN Commit([call EXCEPT !.status = "begun", !.holder = entry.holder], {entry})
          /\ untold' = TRUE
     ELSE Commit(call, {entry}) /\ UNCHANGED untold
  /\ UNCHANGED <<effect, owner, claims, lends, proceeds, results, holds, acts, told, outcomes>>

\* Who began lost the call before he was told to proceed: another one begins in his place.
Replace(hold) ==
  /\ call.status = "begun" /\ hold[2] = call.attempt /\ holds[hold] = "asked"
  /\ untold \/ Flaw("replaced after somebody was told")
  /\ Commit([call EXCEPT !.holder = hold[1]], {})
  /\ UNCHANGED <<effect, owner, claims, lends, proceeds, results, holds, acts, told, outcomes,
                 untold>>

Fits(entry) ==
  /\ call.attempt = entry.attempt
  /\ \/ call.status = "intended" /\ effect # "once"
     \/ call.status \in {"begun", "unknown"} /\ call.holder = entry.holder

ConsumeResult(entry) ==
  /\ entry.waiting /\ entry.kind = "result"
  /\ IF Fits(entry)
     THEN Commit([call EXCEPT !.status = "done"], {entry}) /\ outcomes' = outcomes + 1
     ELSE Commit(call, {entry}) /\ UNCHANGED outcomes
  /\ UNCHANGED <<effect, owner, claims, lends, proceeds, results, holds, acts, told, untold>>

\* The owner gives a holder up, rightly or not: another attempt, or an outcome nobody knows.
DeclareLost ==
  /\ IF call.status = "begun"
     THEN IF Flaw("a lost beginning is begun again")
          THEN call.attempt < AttemptsMax /\ Commit(Intended(call.attempt + 1), {})
          ELSE Commit([call EXCEPT !.status = "unknown"], {})
     ELSE /\ call.status = "intended" /\ call.attempt < AttemptsMax
          /\ Commit(Intended(call.attempt + 1), {})
  /\ UNCHANGED <<effect, owner, claims, lends, proceeds, results, holds, acts, told, outcomes,
                 untold>>

------------------------------------------------------------------------------
(* What owners send, by what they know: also those that are owners no more.   *)

Quiet == UNCHANGED <<effect, call, owner, claims, known, inbox, holds, acts, told, outcomes>>

Lend(n, h) ==
  /\ known[n].status = "intended"
  /\ lends' = lends \cup {<<h, known[n].attempt>>}
  /\ UNCHANGED <<proceeds, results, untold>> /\ Quiet

\* To the holder that the log names, however the owner came to own the session.
Proceed(n) ==
  /\ known[n].status = "begun"
  /\ proceeds' = proceeds \cup {<<known[n].holder, known[n].attempt>>}
  /\ untold' = (untold /\ n # owner)
  /\ UNCHANGED <<lends, results>> /\ Quiet

ProceedTooSoon(n) ==
  /\ Flaw("proceed before begun is durable")
  /\ \E entry \in inbox :
       /\ entry.waiting /\ entry.kind = "begin" /\ known[n].status = "intended"
       /\ proceeds' = proceeds \cup {<<entry.holder, entry.attempt>>}
  /\ UNCHANGED <<lends, results, untold>> /\ Quiet

\* An owner that finds a begun call asks who is at it, and takes the first one that says "I am".
AdoptAnyone(n) ==
  /\ Flaw("the log names no holder") /\ known[n].status = "begun"
  /\ \E hold \in Holds :
       /\ holds[hold] = "asked" /\ hold[2] = known[n].attempt
       /\ proceeds' = proceeds \cup {hold}
  /\ UNCHANGED <<lends, results, untold>> /\ Quiet

------------------------------------------------------------------------------
(* What holders do: none -> held -> asked -> running -> acted -> reported.    *)

Still == UNCHANGED <<effect, call, owner, claims, known, lends, proceeds, outcomes, untold>>

Become(hold, state) == holds' = [holds EXCEPT ![hold] = state]

\* One attempt is taken once, however often it is lent.
Take(hold) ==
  /\ hold \in lends
  /\ \/ holds[hold] = "none"
     \/ Flaw("a lend is taken twice") /\ holds[hold] = "acted"
  /\ Become(hold, "held")
  /\ UNCHANGED <<inbox, results, acts, told>> /\ Still

AskToBegin(hold) ==
  /\ effect = "once" /\ holds[hold] = "held"
  /\ Become(hold, "asked") /\ inbox' = Accept("begin", hold)
  /\ UNCHANGED <<results, acts, told>> /\ Still

Start(hold) ==
  /\ \/ effect # "once" /\ holds[hold] = "held"
     \/ holds[hold] = "asked" /\ hold \in proceeds
     \/ Flaw("holder does not wait") /\ holds[hold] = "asked"
  /\ Become(hold, "running")
  /\ UNCHANGED <<inbox, results, acts, told>> /\ Still

Act(hold) ==
  /\ holds[hold] = "running" /\ Become(hold, "acted") /\ acts' = acts + 1
  /\ UNCHANGED <<inbox, results, told>> /\ Still

\* The worker is told that its result is safe when it is in the inbox, and not before.
Report(hold) ==
  /\ holds[hold] = "acted" /\ Become(hold, "reported") /\ told' = told \cup {hold}
  /\ IF Flaw("results travel on the bus alone")
     THEN /\ \E n \in Owner : results' = results \cup {<<n, hold>>}
          /\ UNCHANGED inbox
     ELSE inbox' = Accept("result", hold) /\ UNCHANGED results
  /\ UNCHANGED acts /\ Still

HearResult ==
  /\ \E result \in results : result[1] = owner /\ inbox' = Accept("result", result[2])
  /\ UNCHANGED <<results, holds, acts, told>> /\ Still

------------------------------------------------------------------------------
Next ==
  \/ \E n \in Owner : \/ Claim(n) \/ Proceed(n) \/ ProceedTooSoon(n) \/ AdoptAnyone(n)
                      \/ \E h \in Holder : Lend(n, h)
  \/ \E entry \in inbox : ConsumeBegin(entry) \/ ConsumeResult(entry)
  \/ DeclareLost \/ HearResult
  \/ \E hold \in Holds : \/ Replace(hold) \/ Take(hold) \/ AskToBegin(hold) \/ Start(hold) \/ Act(hold)
                         \/ Report(hold)

Spec == Init /\ [][Next]_vars
Symmetric == Permutations(Owner) \cup Permutations(Holder)

------------------------------------------------------------------------------
(* What has to hold.                                                          *)

OnceAtMostOnce == effect = "once" => acts <= 1

OneOutcome == outcomes <= 1

\* Who runs a `once` call is the one of whom the log says that he began it.
BegunFirst ==
  effect = "once" =>
    \A hold \in Holds : holds[hold] \in {"running", "acted", "reported"} =>
      call.status \in {"begun", "unknown", "done"} /\ <<call.holder, call.attempt>> = hold

\* A call that has begun is given to nobody else, by whomever.
BegunIsNotSentAgain == effect = "once" => Cardinality(proceeds) <= 1

\* A result that is safe waits in the inbox, or its call has an outcome or is at another attempt.
ResultIsKept ==
  \A hold \in told :
    \/ Entry("result", hold[1], hold[2]) \in inbox
    \/ call.status = "done"
    \/ call.attempt # hold[2]

\* What is said to have happened did happen.
OutcomeIsTrue == call.status = "done" => acts > 0

------------------------------------------------------------------------------
(* What has to happen somewhere, or the model shows nothing.                  *)

Sight(place, name, met) ==
  IF met /\ ~TLCGet(place) THEN TLCSet(place, TRUE) /\ PrintT(<<"met", name>>) ELSE TRUE

ASSUME \A place \in 1..7 : TLCSet(place, FALSE)

Waits(kind) == \E entry \in inbox : entry.kind = kind /\ entry.waiting

Sights ==
  /\ Sight(1, "a begin that outlives the owner that lent the call",
           claims > 1 /\ call.status = "intended" /\ Waits("begin"))
  /\ Sight(2, "a holder adopted by the next owner",
           claims > 1 /\ call.status = "begun" /\ proceeds # {})
  /\ Sight(3, "two holders ask to begin one attempt",
           \E h, k \in Holder : h # k /\ holds[<<h, 1>>] = "asked" /\ holds[<<k, 1>>] = "asked")
  /\ Sight(4, "a result waits for a call that is given up",
           call.status = "unknown" /\ Waits("result"))
  /\ Sight(5, "a call acts after it was given up", call.status = "unknown" /\ acts = 1 /\ told = {})
  /\ Sight(6, "an earlier owner lends what has begun since",
           \E n \in Owner \ {owner} : known[n].status = "intended" /\ call.status = "begun")
  /\ Sight(7, "a once call acts in its second attempt",
           effect = "once" /\ acts = 1 /\ call.attempt = 2 /\ call.status = "done")
==============================================================================
