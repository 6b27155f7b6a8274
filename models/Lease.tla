-------------------------------- MODULE Lease --------------------------------
(* One session, several nodes, one call of a tool.

   The store keeps the session's log and the token of its newest claim: an epoch
   and a nonce. A node knows the part of the log that it has read, and believes
   in its claim until it makes another one. A lease may run out at any moment,
   for its owner may be paused for longer, so any node may claim at any moment;
   and a node that died is one that does nothing more. What a node submits stays
   on the wire for ever: the store may process it late, twice, or never. What a
   worker was given outlives the claim of the node that gave it.

   Flaws is {} for the protocol itself. Each flaw takes one of its rules away;
   then an invariant has to fail, or the rule would be of no use.             *)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS Node, Effects, ClaimsMax, LogMax, AttemptsMax, Flaws

VARIABLES
  effect,    \* the class that the tool declared: "read", "idempotent" or "once"
  epoch,     \* of the newest claim that the store remembers
  nonce,     \* of the same claim; 0 before the first
  earlier,   \* the nonce of the claim before
  log,       \* the session's events, with the state after each of them
  claims,    \* how many claims there were: nonces are never given twice
  lost,      \* has the store failed over, and lost a claim by that?
  node,      \* what each node knows
  wire,      \* commits that were submitted
  flights,   \* tasks that workers were given
  barred     \* attempts of which the far end has said that they never acted

vars == <<effect, epoch, nonce, earlier, log, claims, lost, node, wire, flights, barred>>

Flaw(name) == name \in Flaws

Nothing == [kind |-> "nothing", attempt |-> 0]
Away == [epoch |-> 0, nonce |-> 0, seen |-> 0, expected |-> 0, pending |-> Nothing]

Init ==
  /\ effect \in Effects
  /\ epoch = 0 /\ nonce = 0 /\ earlier = 0 /\ log = <<>> /\ claims = 0 /\ lost = FALSE
  /\ node = [n \in Node |-> Away]
  /\ wire = {} /\ flights = {} /\ barred = {}

------------------------------------------------------------------------------
(* The call, as a log tells it: absent, intended, begun, unknown or done.     *)

Absent == [status |-> "absent", attempt |-> 1]
Call(length) == IF length = 0 THEN Absent ELSE log[length].after
Known(n) == Call(node[n].seen)

After(call, kind) ==
  CASE kind = "intended"  -> [call EXCEPT !.status = "intended"]
    [] kind = "begun"     -> [call EXCEPT !.status = "begun"]
    [] kind = "unknown"   -> [call EXCEPT !.status = "unknown"]
    [] kind = "succeeded" -> [call EXCEPT !.status = "done"]
    [] OTHER              -> [status |-> "intended", attempt |-> call.attempt + 1]

Open == {"intended", "begun", "unknown"}

------------------------------------------------------------------------------
(* Ownership.                                                                 *)

\* The lease of the owner, if there is one, has run out. Claim first, then load: both are one
\* transaction of the store.
Claim(n) ==
  /\ claims < ClaimsMax
  /\ epoch' = epoch + 1 /\ nonce' = claims + 1 /\ claims' = claims + 1 /\ earlier' = nonce
  /\ \E seen \in (IF Flaw("load before claim") THEN 0..Len(log) ELSE {Len(log)}) :
       node' = [node EXCEPT ![n] = [epoch |-> epoch + 1, nonce |-> claims + 1, seen |-> seen,
                                    expected |-> Len(log), pending |-> Nothing]]
  /\ UNCHANGED <<effect, log, lost, wire, flights, barred>>

\* The store fails over to a copy that has every commit, and not the newest claim.
FailOver ==
  /\ ~lost /\ epoch > 0
  /\ \A i \in 1..Len(log) : log[i].nonce # nonce
  /\ epoch' = epoch - 1 /\ nonce' = earlier /\ lost' = TRUE
  /\ UNCHANGED <<effect, earlier, log, claims, node, wire, flights, barred>>

------------------------------------------------------------------------------
(* Commits.                                                                   *)

Submit(n, kind, attempt) ==
  /\ node[n].nonce > 0 /\ node[n].pending = Nothing
  /\ node[n].expected < LogMax
  /\ wire' = wire \cup {[kind |-> kind, attempt |-> attempt, epoch |-> node[n].epoch,
                         nonce |-> node[n].nonce, expected |-> node[n].expected,
                         base |-> node[n].seen]}
  /\ node' = [node EXCEPT ![n].pending = [kind |-> kind, attempt |-> attempt]]

\* Token and version are compared where the commit is written, in one statement.
Accepts(commit) ==
  /\ Flaw("no token") \/ commit.epoch = epoch
  /\ Flaw("no token") \/ Flaw("no nonce") \/ commit.nonce = nonce
  /\ Flaw("no version") \/ commit.expected = Len(log)

Write(commit) ==
  /\ Accepts(commit) /\ Len(log) < LogMax
  /\ log' = Append(log, [kind |-> commit.kind, attempt |-> commit.attempt,
                         epoch |-> commit.epoch, nonce |-> commit.nonce,
                         base |-> commit.base, holder |-> nonce,
                         after |-> After(Call(commit.base), commit.kind)])
  /\ UNCHANGED <<effect, epoch, nonce, earlier, claims, lost, node, wire, flights, barred>>

Acknowledge(n) ==
  LET place == node[n].expected + 1 IN
  /\ node[n].pending # Nothing /\ place <= Len(log)
  /\ log[place].nonce = node[n].nonce /\ log[place].kind = node[n].pending.kind
  /\ node' = [node EXCEPT ![n].seen = place, ![n].expected = place, ![n].pending = Nothing]
  /\ UNCHANGED <<effect, epoch, nonce, earlier, log, claims, lost, wire, flights, barred>>

------------------------------------------------------------------------------
(* What nodes decide.                                                         *)

Same == UNCHANGED <<effect, epoch, nonce, earlier, log, claims, lost, flights, barred>>

Intend(n) == Known(n).status = "absent" /\ Submit(n, "intended", 1) /\ Same

\* The worker of this node's own flight asks to begin a `once` call.
Begin(n) ==
  /\ effect = "once" /\ Known(n).status = "intended"
  /\ \E f \in flights : f.nonce = node[n].nonce /\ f.attempt = Known(n).attempt
  /\ Submit(n, "begun", Known(n).attempt) /\ Same

\* The worker is lost, or is held to be: the attempt is over, unless it may have acted.
Lose(n) ==
  /\ \/ Known(n).status = "intended" /\ Known(n).attempt < AttemptsMax
        /\ Submit(n, "lost", Known(n).attempt)
     \/ Known(n).status = "begun" /\ Submit(n, "unknown", Known(n).attempt)
  /\ Same

\* A result of the present attempt, whoever gave it out; it may come after "unknown".
Succeed(n) ==
  /\ \E f \in flights :
       /\ f.phase = "acted"
       /\ Flaw("late outcome accepted") \/ f.attempt = Known(n).attempt
       /\ effect = "once" => Known(n).status # "intended"
       /\ Known(n).status \in (IF Flaw("late outcome accepted") THEN Open \cup {"done"} ELSE Open)
       /\ Submit(n, "succeeded", f.attempt)
  /\ Same

Acted(attempt) == \E f \in flights : f.phase = "acted" /\ f.attempt = attempt

\* The far end is asked about an unknown outcome. Who says "never" keeps to it.
Probe(n) ==
  LET attempt == Known(n).attempt IN
  /\ Known(n).status = "unknown"
  /\ IF Acted(attempt)
     THEN Submit(n, "succeeded", attempt) /\ UNCHANGED barred
     ELSE /\ attempt < AttemptsMax /\ Submit(n, "reopened", attempt)
          /\ barred' = (IF Flaw("probe does not bind") THEN barred ELSE barred \cup {attempt})
  /\ UNCHANGED <<effect, epoch, nonce, earlier, log, claims, lost, flights>>

------------------------------------------------------------------------------
(* What workers are given, and do.                                            *)

Flight(n, phase) == [nonce |-> node[n].nonce, attempt |-> Known(n).attempt, phase |-> phase]

Flies(n) == \E f \in flights : f.nonce = node[n].nonce /\ f.attempt = Known(n).attempt

Fly(flight) ==
  /\ flights' = flights \cup {flight}
  /\ UNCHANGED <<effect, epoch, nonce, earlier, log, claims, lost, node, wire, barred>>

\* A `once` call waits for its beginning, everything else just goes.
Dispatch(n) ==
  /\ node[n].nonce > 0 /\ ~Flies(n)
  /\ \/ Known(n).status = "intended"
        /\ Fly(Flight(n, IF effect = "once" THEN "asks" ELSE "goes"))
     \/ Flaw("send before durable") /\ node[n].pending.kind = "intended"
        /\ Fly(Flight(n, "goes"))
     \/ Flaw("once is sent again") /\ Known(n).status = "begun" /\ Fly(Flight(n, "goes"))

Move(flight, phase) ==
  /\ flights' = (flights \ {flight}) \cup {[flight EXCEPT !.phase = phase]}
  /\ UNCHANGED <<effect, epoch, nonce, earlier, log, claims, lost, node, wire, barred>>

Proceed(n) ==
  \E f \in flights :
    /\ f.phase = "asks" /\ f.nonce = node[n].nonce /\ f.attempt = Known(n).attempt
    /\ Known(n).status = "begun" \/ (Flaw("proceed before begun") /\ node[n].pending.kind = "begun")
    /\ Move(f, "goes")

\* A task that is lost on its way, or with its worker, is one that never acts.
Act == \E f \in flights : f.phase = "goes" /\ f.attempt \notin barred /\ Move(f, "acted")

------------------------------------------------------------------------------
Next ==
  \/ FailOver \/ Act
  \/ \E commit \in wire : Write(commit)
  \/ \E n \in Node : \/ Claim(n) \/ Acknowledge(n)
                     \/ Intend(n) \/ Begin(n) \/ Lose(n) \/ Succeed(n) \/ Probe(n)
                     \/ Dispatch(n) \/ Proceed(n)

Spec == Init /\ [][Next]_vars
Symmetric == Permutations(Node)

\* Where versions are compared, a commit for a version that is past is as good as none.
View == <<effect, epoch, nonce, earlier, log, claims, lost, node, flights, barred,
          {c \in wire : Flaw("no version") \/ c.expected >= Len(log)}>>

------------------------------------------------------------------------------
(* What has to hold.                                                          *)

EpochsGrow == \A i, j \in 1..Len(log) : i < j => log[i].epoch <= log[j].epoch

DirectBase == \A i \in 1..Len(log) : log[i].base = i - 1

HolderWrites == \A i \in 1..Len(log) : log[i].nonce = log[i].holder

OneOutcome == Cardinality({i \in 1..Len(log) : log[i].kind = "succeeded"}) <= 1

Flown == {f \in flights : f.phase = "acted"}
Has(kind, attempt) == \E i \in 1..Len(log) : log[i].kind = kind /\ log[i].attempt = attempt

OnceAtMostOnce == effect = "once" => Cardinality(Flown) <= 1

\* The far end takes one effect for one key, and the key outlives attempts.
Key(f) == IF Flaw("key names attempt") THEN f.attempt ELSE 0
OneEffectPerCall == effect = "idempotent" => Cardinality({Key(f) : f \in Flown}) <= 1

IntentFirst ==
  \A f \in Flown : /\ \E i \in 1..Len(log) : log[i].kind = "intended"
                   /\ effect = "once" => Has("begun", f.attempt)

OutcomeIsTrue == \A i \in 1..Len(log) : log[i].kind = "succeeded" => Flown # {}

------------------------------------------------------------------------------
(* What has to happen somewhere, or the model shows nothing. Each is printed
   when it is met for the first time; the invariant itself is always true.    *)

Sight(place, name, met) ==
  IF met /\ ~TLCGet(place) THEN TLCSet(place, TRUE) /\ PrintT(<<"met", name>>) ELSE TRUE

ASSUME \A place \in 1..6 : TLCSet(place, FALSE)

Sights ==
  /\ Sight(1, "a commit of an older claim is refused",
           \E c \in wire : c.nonce < nonce /\ c.expected = Len(log))
  /\ Sight(2, "an effect after the claim that sent it",
           \E f \in Flown : f.nonce < claims /\ \A n \in Node : node[n].nonce # f.nonce)
  /\ Sight(3, "a late result settles an unknown outcome",
           \E i \in 2..Len(log) : log[i].kind = "succeeded" /\ log[i - 1].kind = "unknown")
  /\ Sight(4, "a once call acts in its second attempt",
           effect = "once" /\ \E f \in Flown : f.attempt = 2)
  /\ Sight(5, "two claims of one epoch",
           \E n, m \in Node : node[n].epoch = node[m].epoch /\ node[n].nonce # node[m].nonce
                              /\ node[n].nonce > 0 /\ node[m].nonce > 0)
  /\ Sight(6, "an idempotent call is executed twice",
           effect = "idempotent" /\ Cardinality(Flown) > 1)
==============================================================================
