"""Frames: what is one, what is none, and how its connection is closed then."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.wire import frames
from perdure.wire.frames import BadFrame, BadPayload, Frame, TooLarge, decode, encode

DEEP = frames.FRAME_DEPTH_MAX


def test_a_frame_is_five_things() -> None:
    """As Phoenix writes it; the payload stays as it came until somebody knows what it is."""
    frame = decode('["1","2","agent:5","phx_join",{"run_id":7}]')
    assert frame == Frame("1", "2", "agent:5", "phx_join", frame.payload)
    assert bytes(frame.payload) == b'{"run_id":7}'
    assert decode(b'[null,null,"t","e",null]').ref is None


# what comes, how its connection is closed, what the error says
BAD = [
    ("", 1007, "not JSON"),
    ("nonsense", 1007, "not JSON"),
    ('[null,null,"t","e",{"a":}]', 1007, "not JSON"),
    ('[null,null,"t","e",{}', 1007, "not JSON"),
    (b'[null,null,"t","\xff",{}]', 1007, "not UTF-8"),
    ('[null,null,"t","\ud800",{}]', 1007, "not UTF-8"),
    ("{}", 1002, "expected [join_ref, ref, topic, event, payload]"),
    ('[null,null,"t","e"]', 1002, "at least length 5"),
    ('[null,null,"t","e",{},1]', 1002, "at most length 5"),
    ('[null,null,7,"e",{}]', 1002, "Expected `str`"),
    ('[null,null,"t",null,{}]', 1002, "Expected `str`"),
    ('[1,null,"t","e",{}]', 1002, "Expected `str | null`"),
    ('[null,null,"t","e","' + "x" * 1024 * 1024 + '"]', 1009, "the limit is 1048576"),
    ('[null,null,"t","e","' + "é" * 600 * 1024 + '"]', 1009, "the limit is 1048576"),
    (f'[null,null,"t","e",{"[" * DEEP}1{"]" * DEEP}]', 1009, f"the limit of {DEEP} levels"),
    (f'[null,null,"t","e",{"[" * 500_000}{"]" * 500_000}]', 1009, f"the limit of {DEEP} levels"),
]


@pytest.mark.parametrize(("text", "code", "said"), BAD, ids=range(len(BAD)))
def test_what_is_no_frame_closes_its_connection(text: str | bytes, code: int, said: str) -> None:
    """The code tells the peer whose fault it was, the text what was wrong."""
    with pytest.raises(BadFrame) as bad:
        decode(text)
    assert bad.value.close_code == code
    assert said in str(bad.value)


def test_a_frame_may_be_as_deep_as_the_limit() -> None:
    """What the core takes has to get through, in its envelope."""
    nested = "[" * (DEEP - 1) + "1" + "]" * (DEEP - 1)
    assert decode(f'[null,null,"t","e",{nested}]').event == "e"
    assert decode(f'[null,null,"t","{"[" * 5000}",0]').topic == "t"


def test_a_binary_message_is_none() -> None:
    """There are no binary frames here, though Phoenix knows some."""
    assert frames.binary(7).close_code == 1003


def test_a_payload_is_decoded_when_it_is_known_what_it_is() -> None:
    """One of another shape is answered; one that is not JSON closes the connection."""
    numbers = msgspec.json.Decoder(dict[str, int])
    assert frames.payload_as(decode('[null,null,"t","e",{"a":1}]'), numbers) == {"a": 1}
    with pytest.raises(BadPayload, match="the payload of 'e' is not valid"):
        frames.payload_as(decode('[null,null,"t","e",{"a":"x"}]'), numbers)
    for broken, code in ((b"{", 1007), (b"[" * 100_000, 1009)):
        frame = Frame(None, None, "t", "e", msgspec.Raw(broken))
        with pytest.raises(BadFrame) as bad:
            frames.payload_as(frame, msgspec.json.Decoder())
        assert bad.value.close_code == code


def test_what_is_too_large_for_its_receiver_is_not_made() -> None:
    """The limit is on bytes, and counts the envelope."""
    text = encode(None, "1", "t", "e", {"a": "é"}, 30)
    assert json.loads(text) == [None, "1", "t", "e", {"a": "é"}]
    size = len(text.encode())
    with pytest.raises(TooLarge, match=f"the frame has {size} bytes, and its receiver") as large:
        encode(None, "1", "t", "e", {"a": "é"}, size - 1)
    assert (large.value.size_bytes, large.value.bytes_max) == (size, size - 1)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_anything_is_a_frame_or_none(data: str | bytes) -> None:
    """Nothing else ever comes out of it."""
    found: Frame | BadFrame
    try:
        found = decode(data)
    except BadFrame as bad:
        found = bad
    assert isinstance(found, Frame) or found.close_code in (1002, 1007, 1009)
