"""Frames: `[join_ref, ref, topic, event, payload]`, one JSON text each.

A frame that is none is a `BadFrame`, which knows the code that its connection is closed with; a
payload of the wrong shape is a `BadPayload`, which is answered and closes nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from perdure.core.errors import LimitExceeded, PerdureError
from perdure.core.limits import JSON_DEPTH_MAX, REPLY_BYTES_MAX, may_be_too_deep, too_deep

FRAME_BYTES_MAX = 1024 * 1024
"""What a peer takes at most, unless its join says otherwise."""

SERVER_FRAME_BYTES_MAX = REPLY_BYTES_MAX + FRAME_BYTES_MAX
"""What a server takes at most: the largest reply that it would record, and its envelope."""

FRAME_DEPTH_MAX = JSON_DEPTH_MAX + 8
"""How deeply a frame may be nested: what the core takes, in the envelope that carries it."""

OF_MANY = frozenset({"tool_result", "results", "tasks"})
"""Events that bear what is judged one by one when it is read: a result that is nested too deeply
fails its own call, and closes nothing."""

CLOSE_PROTOCOL_ERROR = 1002
CLOSE_NOT_TEXT = 1003
CLOSE_NOT_JSON = 1007
CLOSE_TOO_LARGE = 1009
CLOSE_TRY_AGAIN = 1012
"""For shutting down and shedding: after 1000 and 1001 the peers of Norns come back at once."""

T = TypeVar("T")


class BadFrame(PerdureError):
    """What came is no frame. Its connection is closed with `close_code`; no other is harmed."""

    def __init__(self, message: str, close_code: int) -> None:
        super().__init__(message)
        self.close_code = close_code


class BadPayload(PerdureError):
    """A frame's payload has not the shape that its event asks for; the frame is answered so."""


class TooLarge(LimitExceeded):
    """A frame is larger than its receiver takes; it must not be sent."""

    def __init__(self, size_bytes: int, bytes_max: int) -> None:
        super().__init__(
            f"the frame has {size_bytes} bytes, and its receiver takes at most {bytes_max}"
        )
        self.size_bytes = size_bytes
        self.bytes_max = bytes_max


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What came. The payload is decoded when it is known what it should be: see `payload_as`."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: msgspec.Raw


_frames = msgspec.json.Decoder(Frame)
_encode = msgspec.json.Encoder().encode


def decode(data: str | bytes, bytes_max: int = FRAME_BYTES_MAX) -> Frame:
    """Return the frame in a text message, given as text or as its UTF-8.

    Raises `BadFrame` if it is none: too large, not UTF-8, not JSON, nested too deeply, or not five
    elements of the right kinds.
    """
    if len(data) > bytes_max:
        raise _too_large(len(data), bytes_max)
    try:
        if isinstance(data, str):
            body = data.encode()
        else:
            data.decode()
            body = data
    except UnicodeError as error:
        raise BadFrame(f"the frame is not UTF-8: {error}", CLOSE_NOT_JSON) from None
    if len(body) > bytes_max:
        raise _too_large(len(body), bytes_max)
    try:
        frame = _frames.decode(body)
        if frame.event not in OF_MANY and may_be_too_deep(body, FRAME_DEPTH_MAX):
            _refuse_depth(body)
    except msgspec.ValidationError as error:
        expected = "expected [join_ref, ref, topic, event, payload]"
        raise BadFrame(f"{expected}: {error}", CLOSE_PROTOCOL_ERROR) from None
    except msgspec.DecodeError as error:
        raise BadFrame(f"the frame is not JSON: {error}", CLOSE_NOT_JSON) from None
    except RecursionError:
        raise _too_deep() from None
    return frame


def binary(size_bytes: int) -> BadFrame:
    """Return what a binary message is: this protocol has none."""
    return BadFrame(
        f"a binary message of {size_bytes} bytes came; frames are JSON in text messages",
        CLOSE_NOT_TEXT,
    )


def payload_as(frame: Frame, decoder: msgspec.json.Decoder[T]) -> T:
    """Return a frame's payload as what `decoder` makes of it.

    Raises `BadPayload` if it has another shape, `BadFrame` if it is not JSON.
    """
    try:
        return decoder.decode(frame.payload)
    except msgspec.ValidationError as error:
        raise BadPayload(f"the payload of {frame.event!r} is not valid: {error}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadFrame(
            f"the payload of {frame.event!r} is not JSON: {error}", CLOSE_NOT_JSON
        ) from None
    except RecursionError:
        raise _too_deep() from None


def encode(
    join_ref: str | None,
    ref: str | None,
    topic: str,
    event: str,
    payload: Any,
    bytes_max: int | None = None,
) -> str:
    """Return a frame as text. Raises `TooLarge` if it has more than `bytes_max` bytes."""
    body = _encode((join_ref, ref, topic, event, payload))
    if bytes_max is not None and len(body) > bytes_max:
        raise TooLarge(len(body), bytes_max)
    return body.decode()


def encode_payload(payload: Any) -> bytes:
    """Return a payload as the JSON that a frame carries."""
    return _encode(payload)


def _refuse_depth(body: bytes) -> None:
    if too_deep(msgspec.json.decode(body), FRAME_DEPTH_MAX):
        raise _too_deep()


def _too_deep() -> BadFrame:
    return BadFrame(
        f"the frame is nested deeper than the limit of {FRAME_DEPTH_MAX} levels", CLOSE_TOO_LARGE
    )


def _too_large(size: int, bytes_max: int) -> BadFrame:
    return BadFrame(
        f"the frame has {size} bytes or more, and the limit is {bytes_max}", CLOSE_TOO_LARGE
    )
