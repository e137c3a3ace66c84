"""Frames to messages and back: the only caller of ``msgspec.json`` for what travels.

A frame is decoded once, whole, into plain Python values. So there is one verdict on what is JSON, and a
typed payload is converted from those values later (:mod:`stepflow_trio.protocol.methods`).
"""

from __future__ import annotations

import gc
import re
from itertools import accumulate
from typing import Any, cast, final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from stepflow_trio.errors import ErrorCode, LocalProtocolError
from stepflow_trio.protocol.json_types import json_type
from stepflow_trio.protocol.lines import EDGE_BYTES, MAX_FRAME_BYTES
from stepflow_trio.protocol.messages import (
    MAX_ID,
    MAX_ID_CHARS,
    MIN_ID,
    Batch,
    Decoded,
    ErrorObject,
    Failure,
    Malformed,
    Notification,
    Request,
    RequestId,
    Success,
    WireFailure,
    WireNotification,
    WireRequest,
    WireSuccess,
)

MAX_NESTING = 128
"""Deepest nesting of arrays and objects accepted: the decoder recurses on the C stack, which hostile input
would otherwise use up on a small thread. The largest published schema nests 14 deep."""

MAX_BATCH_ITEMS = 4096
"""Most messages accepted in one array: each invalid one costs an answer many times its own size."""

_LARGE_BYTES = 2**18
"""Text from which on pausing the garbage collector is worth its cost."""

_decode = msgspec.json.Decoder(Any).decode
_encode = msgspec.json.Encoder().encode

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# The closing quote is optional, or an unterminated string would be searched again from each quote in it.
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")
_STEPS_AT_ONCE = 2**16
_ANSWER_BEGINS = re.compile(
    rb'\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*([0-9]{1,16})\s*,\s*"(?:result|error)"\s*:'
)
_ANSWER_WITHOUT_ID_BEGINS = re.compile(rb'\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"(?:result|error)"\s*:')
_ID_ENDS = re.compile(rb',\s*"id"\s*:\s*([0-9]{1,16})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\Z')
_METHOD_BEGINS = re.compile(rb'\{"jsonrpc":"2\.0","method":("(?:[^"\\]|\\.)*")')
_OWN_ID_ENDS = re.compile(rb',"id":(-?[0-9]+|"(?:[^"\\]|\\.)*"|null)\}\Z')
_BYTE_OFFSET = re.compile(r"\(byte (\d+)\)")

_PARAMS_TYPES: tuple[type[object], ...] = (dict, list, UnsetType)
_ENVELOPE_KEYS = ("jsonrpc", "id", "method", "params", "result", "error")
_QUOTED_KEYS = re.compile('"(?:{})"'.format("|".join(_ENVELOPE_KEYS)).encode())


def decode(
    frame: bytes, *, max_nesting: int = MAX_NESTING, max_batch_items: int = MAX_BATCH_ITEMS
) -> Decoded:
    """Say which message ``frame`` is; whatever is none is a :class:`Malformed`. Never raises."""
    try:
        value = decode_json(frame, max_nesting=max_nesting)
    except ValueError as exc:
        return Malformed(_parse_error(str(exc), len(frame)))
    if type(value) is dict:
        return _classify_unless_ambiguous(value, frame)
    if type(value) is list:
        items = cast("list[Any]", value)
        if not items:
            return Malformed(_invalid("an empty array is no batch"))
        if len(items) > max_batch_items:
            return Malformed(
                _invalid(f"a batch of {len(items)} messages; at most {max_batch_items} are accepted")
            )
        texts = msgspec.json.decode(frame, type=list[msgspec.Raw])
        return Batch(tuple(map(_classify_unless_ambiguous, items, map(bytes, texts))))
    return Malformed(_invalid(f"a message is an object, not {json_type(value)}"))


def answers_begun(frame: bytes) -> list[int]:
    """The ids that answers in ``frame`` have, where it cannot be read but holds the beginnings of answers.

    Public workers cut an answer off when their stdout takes no more, its line's end included: then the next
    answer stands behind it on the same line, and neither can be read. Where an answer begins without its
    id, as ours do, the id is looked for at the end of the frame.
    """
    frame = frame.strip()
    found = list(_ANSWER_BEGINS.finditer(frame))
    # Behind a bracket, a comma or a colon stands what an answer contains, however much it looks like one;
    # unless the frame was cut off just there, and what follows is a whole message.
    begun = [match for match in found if not match.start() or frame[match.start() - 1] not in b"[,: \t"]
    if found and found[-1] not in begun and type(decode(frame[found[-1].start() :])) in (Success, Failure):
        begun.append(found[-1])
    if _ANSWER_WITHOUT_ID_BEGINS.match(frame) and (end := _ID_ENDS.search(frame[-EDGE_BYTES:])):
        begun.append(end)
    return [int(match[1]) for match in begun]


def decode_json(text: bytes, *, max_nesting: int = MAX_NESTING) -> Any:
    """Decode one JSON text, strictly by RFC 8259: valid UTF-8 throughout, finite numbers, bounded nesting.

    Raises:
        ValueError: with a message that says what is wrong and, where known, at which byte.
    """
    if not text.isascii():
        # The decoder passes over bad UTF-8 in what it skips; one check here makes the verdict whole.
        try:
            text.decode()
        except UnicodeDecodeError as exc:
            raise ValueError(f"not UTF-8: {exc.reason} (byte {exc.start})") from None
    if nests_deeper(text, max_nesting):
        raise ValueError(f"nested deeper than {max_nesting} levels")
    # Nothing of what is decoded is garbage yet, but the collector would look through it all again and again.
    pauses_collector = len(text) > _LARGE_BYTES and gc.isenabled()
    if pauses_collector:
        gc.disable()
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError(str(exc)) from None
    finally:
        if pauses_collector:
            gc.enable()


def nests_deeper(text: bytes, limit: int) -> bool:
    """Whether brackets nest deeper than ``limit``, in linear time and without recursion.

    Both kinds count alike: where they do not match, the text is no JSON, and is not read beyond that place.
    """
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    steps = memoryview(_STRINGS.sub(b"", text).translate(_STEPS, _NOT_BRACKETS)).cast("b")
    level = 0
    for start in range(0, len(steps), _STEPS_AT_ONCE):
        levels = list(accumulate(steps[start : start + _STEPS_AT_ONCE], initial=level))
        if max(levels) > limit:
            return True
        level = levels[-1]
    return False


def classify(value: Any) -> Request | Notification | Success | Failure | Malformed:
    """Say which message a decoded value is (docs/protocol.md, section 1)."""
    if type(value) is not dict:
        return Malformed(_invalid(f"a message is an object, not {json_type(value)}"))
    message = cast("dict[str, Any]", value)
    get = message.get
    id_: Any = get("id", UNSET)
    id_is_valid = _is_id(id_)
    own_id: RequestId | None = id_ if id_is_valid else None
    method = get("method", UNSET)
    if get("jsonrpc") != "2.0":
        return Malformed(_invalid('"jsonrpc" must be "2.0"'), own_id, method is UNSET and _answers(message))
    if method is not UNSET:
        params: Any = get("params", UNSET)
        if params is None:
            params = UNSET
        if type(method) is not str:
            return Malformed(_invalid(f'"method" must be a string, not {json_type(method)}'), own_id)
        if type(params) not in _PARAMS_TYPES:
            problem = f'"params" must be an object or an array, not {json_type(params)}'
            return Malformed(_invalid(problem), own_id)
        if "result" in message or "error" in message:
            return Malformed(_invalid("a request carries no result and no error"), own_id)
        if id_ is UNSET:
            return Notification(method, params)
        if not id_is_valid:
            return Malformed(_invalid(_bad_id(id_)))
        return Request(method, params, id_)
    if not _answers(message):
        return Malformed(_invalid('neither "method" nor "result" nor "error"'), own_id)
    error = get("error")
    if error is None:
        if not id_is_valid:
            return Malformed(_invalid(_bad_id(id_)), None, is_response=True)
        if "result" not in message:
            return Malformed(_invalid('"error" is null and there is no "result"'), own_id, is_response=True)
        return Success(message["result"], id_)
    if "result" in message:
        return Malformed(_invalid('both "result" and "error"'), own_id, is_response=True)
    if not id_is_valid and id_ is not None:
        return Malformed(_invalid(_bad_id(id_)), None, is_response=True)
    if type(error) is not dict:
        return Malformed(
            _invalid(f'"error" must be an object, not {json_type(error)}'), own_id, is_response=True
        )
    fields = cast("dict[str, Any]", error)
    code, text = fields.get("code"), fields.get("message")
    if type(code) is not int or type(text) is not str:
        problem = '"error" must hold an integer "code" and a string "message"'
        return Malformed(_invalid(problem), own_id, is_response=True)
    return Failure(ErrorObject(code, text, fields.get("data", UNSET)), own_id)


def encode_request(method: str, params: Any, id_: RequestId) -> bytes:
    """One request as a frame. Raises :class:`LocalProtocolError` where ``params`` are no JSON."""
    return _message(WireRequest("2.0", method, params, id_))


def encode_notification(method: str, params: Any) -> bytes:
    """One notification as a frame. Raises :class:`LocalProtocolError` where ``params`` are no JSON."""
    return _message(WireNotification("2.0", method, params))


def encode_success(result: Any, id_: RequestId) -> bytes:
    """One result as a frame. Raises :class:`LocalProtocolError` where ``result`` is no JSON."""
    if result is UNSET:
        # As a member of the message it would be left out, and the message would be no answer.
        raise LocalProtocolError("a result cannot be sent as JSON: it is UNSET")
    return _message(WireSuccess("2.0", result, id_))


def encode_failure(error: ErrorObject, id_: RequestId | None) -> bytes:
    """One error as a frame. Raises :class:`LocalProtocolError` where the error's data are no JSON."""
    return _message(WireFailure("2.0", error, id_))


def _message(value: Any) -> bytes:
    frame = encode_json(value)
    if len(frame) > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"a message of {len(frame)} bytes cannot be sent, at most {MAX_FRAME_BYTES}: "
            "store large data as blobs"
        )
    return frame


def encode_batch(frames: list[bytes]) -> bytes:
    """The frames as one array, in their order. It nests one level deeper than they do."""
    return b"[" + b",".join(frames) + b"]"


@final
class Outline(Struct, frozen=True):
    """What a frame is, without what it says: ``method`` is None for an answer, ``id`` for a notification."""

    method: str | None
    id: RequestId | None


def outline(frame: bytes) -> Outline:
    """What a frame is that the functions above have written; its payload is not decoded."""
    begins = _METHOD_BEGINS.match(frame)
    id_ends = _OWN_ID_ENDS.match(frame, at) if (at := frame.rfind(b',"id":')) >= 0 else None
    return Outline(
        None if begins is None else _decode(begins[1]),
        None if id_ends is None else _decode(id_ends[1]),
    )


def encode_json(value: Any) -> bytes:
    """``value`` as compact JSON, keys in their order, non-ASCII characters as they are.

    Raises:
        LocalProtocolError: it is no JSON (a type that JSON does not have, a lone surrogate, it contains
            itself), or it nests deeper than we would read.
    """
    try:
        frame = _encode(value)
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"text cannot be sent: {exc.reason} (character {exc.start})") from exc
    except RecursionError as exc:
        raise LocalProtocolError("a value nests too deep to be sent, or contains itself") from exc
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as exc:
        raise LocalProtocolError(f"a value cannot be sent as JSON: {exc}") from exc
    if len(frame) > 2 * MAX_NESTING and nests_deeper(frame, MAX_NESTING):
        # A peer that refuses to read it could not say what it refuses, and our caller would wait for ever.
        raise LocalProtocolError(f"a value cannot be sent: it nests deeper than {MAX_NESTING} levels")
    return frame


def _classify_unless_ambiguous(
    value: Any, text: bytes
) -> Request | Notification | Success | Failure | Malformed:
    """Classify ``value``, which ``text`` says, unless a key of the envelope stands there twice.

    Of two ids the decoder keeps the last and other readers the first: each would see another message.
    """
    # A key that stands twice spells its name twice, or hides it behind an escape. Few messages do either.
    # (How many keys the message has says nothing: an unknown key would make up for the lost one.)
    if type(value) is not dict:
        return classify(value)
    message = cast("dict[str, Any]", value)
    spelled = _QUOTED_KEYS.findall(text)
    is_plain = len(spelled) == len(set(spelled)) and b"\\u00" not in text
    if not is_plain and (twice := _keys_that_stand_twice(text)):
        own_id = message["id"] if "id" not in twice and _is_id(message.get("id")) else None
        names = ", ".join(f'"{key}"' for key in _ENVELOPE_KEYS if key in twice)
        return Malformed(
            _invalid(f"{names} must not stand twice in a message"),
            own_id,
            "method" not in message and _answers(message),
        )
    return classify(value)


class _Key:
    """Stands for any key while keys are looked at, so that none of them is kept."""


_ANY_KEY = _Key()


def _keys_that_stand_twice(text: bytes) -> set[str]:
    once: set[str] = set()
    twice: set[str] = set()

    def note(_type: type, key: str) -> _Key:
        if key in _ENVELOPE_KEYS:
            (twice if key in once else once).add(key)
        return _ANY_KEY

    msgspec.json.decode(text, type=dict[_Key, msgspec.Raw], dec_hook=note)
    return twice


def _is_id(id_: Any) -> bool:
    if type(id_) is str:
        return len(id_) <= MAX_ID_CHARS
    return type(id_) is int and MIN_ID <= id_ <= MAX_ID


def _answers(message: dict[str, Any]) -> bool:
    return "result" in message or "error" in message


def _parse_error(detail: str, size: int) -> ErrorObject:
    data: dict[str, Any] = {"detail": detail, "frame_bytes": size}
    if found := _BYTE_OFFSET.search(detail):
        data["byte_offset"] = int(found.group(1))
    return ErrorObject(ErrorCode.PARSE_ERROR, "Parse error", data)


def _invalid(detail: str) -> ErrorObject:
    return ErrorObject(ErrorCode.INVALID_REQUEST, "Invalid Request", {"detail": detail})


def _bad_id(id_: Any) -> str:
    if id_ is UNSET:
        return 'a response needs an "id"'
    if type(id_) is int:
        return '"id" must fit into 64 bits'
    if type(id_) is str:
        return f'"id" has {len(id_)} characters; at most {MAX_ID_CHARS} are accepted'
    what = "a floating-point number" if type(id_) is float else json_type(id_)
    return f'"id" must be a string or an integer, not {what}'
