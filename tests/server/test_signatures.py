"""Signatures of webhooks: what holds, what does not, and the word for why not."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest

from perdure.core.errors import InvalidInput
from perdure.server.signatures import (
    BadSignature,
    check_secret,
    delivery_id,
    new_secret,
    sign,
    verify,
)

NOW = 1_614_265_330
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
Pairs = list[tuple[bytes, bytes]]


def pairs(scheme: str, secret: str, body: bytes, at: int = NOW, id: bytes = b"msg_1") -> Pairs:
    """What an honest sender of a scheme sends, by the book and without our code."""
    stamp = str(at).encode()

    def mac(key: bytes, text: bytes) -> bytes:
        return hmac.new(key, text, hashlib.sha256).digest()

    key = secret.encode()
    if scheme == "github":
        return [(b"X-Hub-Signature-256", b"sha256=" + mac(key, body).hex().encode())]
    if scheme == "stripe":
        value = b"t=" + stamp + b",v1=" + mac(key, stamp + b"." + body).hex().encode()
        return [(b"stripe-signature", value)]
    if scheme == "slack":
        value = b"v0=" + mac(key, b"v0:" + stamp + b":" + body).hex().encode()
        return [(b"x-slack-request-timestamp", stamp), (b"x-slack-signature", value)]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    value = b"v1," + base64.b64encode(mac(key, b".".join((id, stamp, body))))
    return [(b"webhook-id", id), (b"webhook-timestamp", stamp), (b"webhook-signature", value)]


def says(scheme: Any, headers: Pairs, body: bytes = BODY, secret: str = SECRET) -> str:
    """The answer to a webhook: `ok` or the word for what is wrong."""
    try:
        verify(scheme, secret, headers, body, NOW * 1000 + 999)
    except BadSignature as bad:
        return bad.reason
    return "ok"


SCHEMES = ["github", "stripe", "slack", "standard"]
TIMED = ["stripe", "slack", "standard"]

SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
    b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
    b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
    b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)

# The publishers' own examples, where they have one: secret, headers, body.
VECTORS = [
    (
        "github",
        "It's a Secret to Everybody",
        [(b"x-hub-signature-256",
          b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")],
        b"Hello, World!",
        NOW,
    ),
    (
        "slack",
        "8f742231b10e8888abcd99yyyzzz85a5",
        [(b"x-slack-request-timestamp", b"1531420618"),
         (b"x-slack-signature",
          b"v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503")],
        SLACK_BODY,
        1_531_420_618,
    ),
    (
        "standard",
        SECRET,
        [(b"webhook-id", b"msg_p5jXN8AQM9LWM0D4loKWxJek"),
         (b"webhook-timestamp", b"1614265330"),
         (b"webhook-signature", b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")],
        BODY,
        NOW,
    ),
]  # fmt: skip


@pytest.mark.parametrize("scheme, secret, headers, body, at", VECTORS)
def test_what_the_publishers_sign(
    scheme: Any, secret: str, headers: Pairs, body: bytes, at: int
) -> None:
    """Their examples hold, and theirs only."""
    verify(scheme, secret, headers, body, at * 1000)
    texts = [(name.decode().title(), value.decode()) for name, value in headers]
    verify(scheme, secret, texts, body, at * 1000)
    verify(scheme, secret, dict(texts), body, at * 1000)
    with pytest.raises(BadSignature, match="invalid_signature"):
        verify(scheme, secret, headers, body + b" ", at * 1000)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_flipped_bit_is_seen(scheme: str) -> None:
    """In the body, in every header, in the secret."""
    good = pairs(scheme, SECRET, BODY)
    assert says(scheme, good) == "ok"
    for number in range(8 * len(BODY)):
        assert says(scheme, good, flipped(BODY, number)) == "invalid_signature"
    for at, (name, value) in enumerate(good):
        for number in range(8 * len(value)):
            bad = [*good[:at], (name, flipped(value, number)), *good[at + 1 :]]
            assert says(scheme, bad) != "ok"
    assert says(scheme, good, secret="whsec_" + "A" * 32) == "invalid_signature"


def flipped(text: bytes, number: int) -> bytes:
    """The text with one bit turned."""
    changed = bytearray(text)
    changed[number // 8] ^= 1 << number % 8
    return bytes(changed)


@pytest.mark.parametrize("scheme", TIMED)
@pytest.mark.parametrize(
    "seconds, expected",
    [(-301, "stale_timestamp"), (-300, "ok"), (300, "ok"), (301, "stale_timestamp")],
)
def test_a_signature_is_good_for_five_minutes(scheme: str, seconds: int, expected: str) -> None:
    """Into the past and into the future."""
    assert says(scheme, pairs(scheme, SECRET, BODY, NOW + seconds)) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_header_is_there_exactly_once(scheme: str) -> None:
    """Twice is an attack, even if both are the same; none, or an empty one, is missing."""
    good = pairs(scheme, SECRET, BODY)
    for header in good:
        rest = [other for other in good if other != header]
        assert says(scheme, rest) == "missing_signature"
        assert says(scheme, [*rest, (header[0], b"")]) == "missing_signature"
        assert says(scheme, [*good, header]) == "invalid_signature"
        assert says(scheme, [(header[0].upper(), b"other"), *good]) == "invalid_signature"


def changed(scheme: str, header: bytes, value: bytes, at: int = NOW) -> Pairs:
    """Honest headers, but for one."""
    return [(n, value if n.lower() == header else v) for n, v in pairs(scheme, SECRET, BODY, at)]


HEX = hmac.new(SECRET.encode(), b"%d." % NOW + BODY, hashlib.sha256).hexdigest().encode()
V1 = dict(pairs("standard", SECRET, BODY))[b"webhook-signature"]
STAMP = b"t=%d" % NOW

ODD = [
    ("github", b"x-hub-signature-256", b"sha1=" + HEX, "invalid_signature"),
    ("github", b"x-hub-signature-256", b"sha256=", "invalid_signature"),
    ("github", b"x-hub-signature-256", b"\xff\xfe", "invalid_signature"),
    ("stripe", b"stripe-signature", b"nonsense", "missing_signature"),
    ("stripe", b"stripe-signature", STAMP, "missing_signature"),
    ("stripe", b"stripe-signature", b"v1=" + HEX, "missing_signature"),
    ("stripe", b"stripe-signature", b"t=now,v1=" + HEX, "missing_signature"),
    ("stripe", b"stripe-signature", STAMP + b"," + STAMP + b",v1=" + HEX, "missing_signature"),
    ("stripe", b"stripe-signature", STAMP + b",v0=" + HEX, "missing_signature"),
    ("stripe", b"stripe-signature", STAMP + b",v1=" + HEX.upper(), "invalid_signature"),
    ("stripe", b"stripe-signature", STAMP + b",v1=00,v1=" + HEX + b",v0=11", "ok"),
    ("stripe", b"stripe-signature", STAMP + b",v1=0" * 15 + b",v1=" + HEX, "ok"),
    ("stripe", b"stripe-signature", STAMP + b",v1=0" * 16 + b",v1=" + HEX, "invalid_signature"),
    ("slack", b"x-slack-signature", b"v1=" + HEX, "invalid_signature"),
    ("standard", b"webhook-signature", b"v1,AAAA " + V1 + b" v1a,AAAA", "ok"),
    ("standard", b"webhook-signature", b"v1,AAAA " * 16 + V1, "invalid_signature"),
    ("standard", b"webhook-signature", V1.replace(b"v1,", b"v2,"), "invalid_signature"),
    ("standard", b"webhook-signature", V1.removeprefix(b"v1,"), "invalid_signature"),
    ("standard", b"webhook-id", b"x" * 300, "invalid_signature"),
]


@pytest.mark.parametrize("scheme, header, value, expected", ODD)
def test_odd_headers(scheme: str, header: bytes, value: bytes, expected: str) -> None:
    """Answered, never crashed on."""
    assert says(scheme, changed(scheme, header, value)) == expected


def test_a_timestamp_that_is_no_number_is_stale_even_if_it_is_signed() -> None:
    """A sender that signs nonsense is not from these five minutes."""
    for stamp in (b"now", b"-1", b"1e9", b"9" * 13):
        mac = hmac.new(SECRET.encode(), b"v0:" + stamp + b":" + BODY, hashlib.sha256).hexdigest()
        headers = [
            (b"x-slack-request-timestamp", stamp),
            (b"x-slack-signature", b"v0=" + mac.encode()),
        ]
        assert says("slack", headers) == "stale_timestamp"


def test_a_point_in_an_id_cannot_move_the_border() -> None:
    """`a` + `.` + stamp + `.` + `1614265330.x` signs the same text as an id with a point in it."""
    body = b"%d.{}" % NOW
    headers = dict(pairs("standard", SECRET, body, at=NOW - 9_999))
    shifted = {
        **headers,
        b"webhook-id": b"msg_1.%d" % (NOW - 9_999),
        b"webhook-timestamp": b"%d" % NOW,
    }
    assert says("standard", list(headers.items()), body) == "stale_timestamp"
    assert says("standard", list(shifted.items()), b"{}") == "invalid_signature"


def test_none_asks_for_nothing() -> None:
    """An unsigned hook is somebody's explicit choice."""
    assert says("none", [], secret="") == "ok"


def test_what_is_signed_holds() -> None:
    """With each of the receiver's secrets, while the sender changes from one to the other."""
    old, new = new_secret(bytes(24)), new_secret(bytes(range(32)))
    headers = sign([old, new], "msg_1", NOW * 1000, BODY)
    assert headers["webhook-id"] == "msg_1"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert [says("standard", raw, secret=secret) for secret in (old, new, SECRET)] == [
        "ok",
        "ok",
        "invalid_signature",
    ]
    _, stamp, value = VECTORS[2][2]
    theirs = sign([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", int(stamp[1]) * 1000, BODY)
    assert theirs["webhook-signature"].encode() == value[1]
    for odd in ("a.b", "ä"):
        with pytest.raises(InvalidInput, match="ASCII without a point"):
            sign([SECRET], odd, 0, b"")


@pytest.mark.parametrize(
    "scheme, secret, message",
    [
        ("md5", "x", "'md5' is no signature type; expected none, github, stripe, slack, standard"),
        ("github", "", "github needs a signing secret"),
        ("slack", None, "slack needs a signing secret"),
        ("standard", "whsec_", "not whsec_ and base64"),
        ("standard", "whsec_not base64!", "not whsec_ and base64"),
        ("standard", "whsec_ä", "not whsec_ and base64"),
    ],
)
def test_a_secret_that_cannot_serve_is_refused(
    scheme: str, secret: str | None, message: str
) -> None:
    """When the hook is written, not when it is called."""
    with pytest.raises(InvalidInput, match=message):
        check_secret(scheme, secret)


def test_a_secret_that_can_serve_is_not() -> None:
    """And tells the scheme."""
    assert check_secret("none", None) == "none"
    assert check_secret("github", "anything") == "github"
    assert check_secret("standard", SECRET) == "standard"
    for short in (23, 65):
        with pytest.raises(InvalidInput, match="24 to 64 random bytes"):
            new_secret(bytes(short))


@pytest.mark.parametrize(
    "scheme, headers, payload, expected",
    [
        ("github", [(b"X-GitHub-Delivery", b"72d3162e")], {}, "72d3162e"),
        ("github", [], {"id": "evt_1"}, None),
        ("github", [(b"x-github-delivery", b"a"), (b"x-github-delivery", b"b")], {}, None),
        ("stripe", [], {"id": "evt_1", "object": "event"}, "evt_1"),
        ("stripe", [], {"id": 7}, None),
        ("stripe", [], {"id": ""}, None),
        ("stripe", [], ["id"], None),
        ("slack", [(b"x-slack-retry-num", b"1")], {"event_id": "Ev1", "event": {}}, "Ev1"),
        ("slack", [], {"type": "url_verification"}, None),
        ("standard", [(b"webhook-id", b"msg_1")], {"id": "evt_1"}, "msg_1"),
        ("standard", [(b"webhook-id", b"x" * 257)], {}, None),
        ("none", [(b"webhook-id", b"msg_1")], {"id": "evt_1"}, None),
    ],
)
def test_what_a_delivery_is_called(
    scheme: Any, headers: Pairs, payload: Any, expected: str | None
) -> None:
    """Each sender has its own place for it; an unsigned one is not believed."""
    assert delivery_id(scheme, headers, payload) == expected
