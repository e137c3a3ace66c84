"""The blob client against the blob API in memory, and against servers that answer what they like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import Context
from stepflow_trio.engine import Handlers, open_connection
from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ErrorCode,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
)
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.dialects import Dialect, Hello
from stepflow_trio.runtime.blob_api import BlobApi
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore
from stepflow_trio.testing import Cancellable, cancel_everywhere
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.worker.blob_client import MAX_REQUESTS, PATIENCE_S, BlobClient
from stepflow_trio.worker.outputs import OutputInvalid

EXAMPLE = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
EXAMPLE_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"
OF_BINARY = {b"content-type": b"application/octet-stream", b"x-blob-type": b"binary"}
OF_DATA = {b"content-type": b"application/octet-stream", b"x-blob-type": b"data"}
OF_JSON = {b"content-type": b"application/json"}


class Answer:
    """An answer that is there already, in pieces."""

    def __init__(self, status: int, headers: dict[bytes, bytes], *pieces: bytes) -> None:
        self.status = status
        self.headers = headers
        self.pieces = list(pieces)

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.pieces.pop(0) if self.pieces else b""


class InMemory:
    """Calls an ASGI application as a client over HTTP would."""

    def __init__(self, app: BlobApi) -> None:
        self.app = app
        self.asked: list[tuple[str, str]] = []
        self.open = 0

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> AsyncGenerator[Answer]:
        self.asked.append((method, target))
        self.open += 1
        length = [(b"content-length", b"%d" % len(body))] if body else []
        scope = {"type": "http", "method": method, "path": target, "headers": [*headers, *length]}
        sent: list[Any] = []
        pieces = [body[at : at + 2**16] for at in range(0, len(body), 2**16)] or [b""]

        async def receive() -> Any:
            await trio.lowlevel.checkpoint()
            if not pieces:
                await trio.sleep_forever()
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(message)

        try:
            await self.app(scope, receive, send)
            yield Answer(sent[0]["status"], dict(sent[0]["headers"]), *(each["body"] for each in sent[1:]))
        finally:
            self.open -= 1


class Scripted:
    """Gives the answers that it was given, one after the other; None: it is silent."""

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []
        self.at: list[float] = []

    @asynccontextmanager
    async def request(
        self, method: str, target: str, *, headers: Any = (), body: bytes = b""
    ) -> AsyncGenerator[Answer]:
        self.asked.append((method, target))
        self.at.append(trio.current_time())
        answer = self.answers.pop(0)
        if answer is None:
            await trio.sleep_forever()
        else:
            yield answer


def in_memory(store: MemoryBlobStore | None = None) -> BlobClient:
    return over(InMemory(BlobApi(store or MemoryBlobStore())), "/api/v1/blobs")


def scripted(*answers: Answer | None, **more: Any) -> BlobClient:
    return over(Scripted(*answers), "/b", **more)


def over(http: InMemory | Scripted, target: str, **more: Any) -> BlobClient:
    """A client whose requests go over what does of an `HttpClient` as much as it needs."""
    return BlobClient(cast("Any", http), target, **more)


# ---- round trips ----------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(VALUES, st.sampled_from(["data", "flow"]))
def test_every_json_value_comes_back_as_it_was(value: Any, kind: str) -> None:
    async def main() -> None:
        client = in_memory()
        got = await client.get(await client.put(value, kind))
        assert codec.encode_json(got) == codec.encode_json(value)  # 1 is not 1.0, and keys have an order

    trio.run(main)


@pytest.mark.parametrize("content", [b"", b"null", bytes(range(256)) * 3000])
async def test_bytes_come_back_as_bytes(content: bytes) -> None:
    client = in_memory()
    blob_id = await client.put_binary(content)
    assert blob_id == hashlib.sha256(content).hexdigest()
    assert await client.get(blob_id) == content
    assert (await client.get_content(blob_id)).blob_type == "binary"


async def test_json_text_is_stored_without_being_read_again() -> None:
    store = MemoryBlobStore()
    client = in_memory(store)
    blob_id = await client.put_json(codec.encode_json(EXAMPLE), "flow")
    assert blob_id == EXAMPLE_ID
    assert await store.get(EXAMPLE_ID) == Blob(codec.encode_json(EXAMPLE), "flow")
    assert await client.get(f"sha256:{EXAMPLE_ID}") == EXAMPLE


async def test_what_is_no_json_is_refused_with_its_place_before_anything_is_sent() -> None:
    http = InMemory(BlobApi(MemoryBlobStore()))
    client = over(http, "/api/v1/blobs")
    for data in ({"a": [float("nan")]}, {"a": [b"bytes"]}, {"a": [object()]}):
        with pytest.raises(OutputInvalid) as caught:
            await client.put(data)
        assert caught.value.json_path == "$.a[0]"
    assert http.asked == []


async def test_the_server_s_id_is_taken_whatever_it_hashed() -> None:
    other = "ab" * 32  # numbers are spelled in many ways, and only the server knows its own
    client = scripted(Answer(200, OF_JSON, json.dumps({"blobId": other}).encode()))
    assert await client.put(1e30) == other


# ---- what is verified -----------------------------------------------------------------------------------


async def test_content_is_verified_whichever_bit_was_changed() -> None:
    for content, headers in ((b"\x00\x01binary", OF_BINARY), (b'{"a":1.50}', OF_DATA)):
        blob_id = hashlib.sha256(content).hexdigest()
        good = await scripted(Answer(200, headers, content[:3], content[3:])).get_content(blob_id)
        assert good.content == content
        for bit in range(len(content) * 8):
            rotten = bytearray(content)
            rotten[bit // 8] ^= 1 << bit % 8
            with pytest.raises(RemoteProtocolError, match="other content"):
                await scripted(Answer(200, headers, bytes(rotten))).get(blob_id)
        with pytest.raises(RemoteProtocolError, match="other content"):
            await scripted(Answer(200, headers, content[:-1])).get(blob_id)


async def test_a_server_that_answers_json_is_read_and_verified_too() -> None:
    def answer(**fields: Any) -> Answer:
        return Answer(200, {b"content-type": b"application/json; charset=utf-8"}, json.dumps(fields).encode())

    assert await scripted(answer(data=EXAMPLE, blobType="data")).get(EXAMPLE_ID) == EXAMPLE
    of_hi = hashlib.sha256(b"hi").hexdigest()
    assert await scripted(answer(data="aGk=", blobType="binary")).get(of_hi) == b"hi"
    for wrong in (
        answer(data={**EXAMPLE, "number": 43}, blobType="data"),
        answer(data="aGo=", blobType="binary"),
        answer(data="no base64", blobType="binary"),
        answer(data=EXAMPLE, blobType="parquet"),
        answer(data=EXAMPLE),
        answer(blobType="data"),
    ):
        with pytest.raises(RemoteProtocolError):
            await scripted(wrong).get(of_hi if b"aGo" in wrong.pieces[0] else EXAMPLE_ID)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {}, b"x"),
        Answer(200, {b"content-type": b"application/octet-stream"}, b"x"),
        Answer(200, {**OF_BINARY, b"x-blob-type": b"parquet"}, b"x"),
        Answer(200, OF_JSON, b"{"),
        Answer(200, OF_JSON, b"[]"),
        Answer(200, OF_JSON),
        Answer(204, {}),
    ],
)
async def test_what_is_no_blob_is_a_remote_protocol_error(answer: Answer) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        await scripted(answer).get(hashlib.sha256(b"x").hexdigest())
    assert caught.value.code == ErrorCode.GARBLED_MESSAGE


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[1]", b'{"blobId":7}', b'{"blobId":"../x"}', b'{"blob_id":"' + b"a" * 64 + b'"}']
)
async def test_an_id_that_is_none_is_a_remote_protocol_error(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="blobs/put"):
        await scripted(Answer(200, OF_JSON, body)).put(1)


async def test_data_that_are_no_json_are_a_remote_protocol_error() -> None:
    content = b"{nope"
    client = scripted(Answer(200, OF_DATA, content))
    with pytest.raises(RemoteProtocolError, match="not JSON"):
        await client.get(hashlib.sha256(content).hexdigest())


async def test_an_answer_is_read_up_to_its_bound_and_not_a_byte_further() -> None:
    content = b"x" * 100
    blob_id = hashlib.sha256(content).hexdigest()
    pieces = [content[:60], content[60:]]
    assert await scripted(Answer(200, OF_BINARY, *pieces), max_blob_bytes=100).get(blob_id) == content
    endless = Answer(200, OF_BINARY, *[b"x" * 60] * 1000)
    with pytest.raises(RemoteProtocolError, match="99 bytes"):
        await scripted(endless, max_blob_bytes=99).get(blob_id)
    assert len(endless.pieces) == 998


# ---- what servers refuse --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "5e43", "../" + EXAMPLE_ID, "%2e%2e", EXAMPLE_ID.upper(), EXAMPLE_ID + "\n", "x\r\nhost: y"]
)
async def test_what_is_no_id_is_not_found_and_never_asked_for(name: str) -> None:
    http = Scripted()
    with pytest.raises(CallFailed) as caught:
        await over(http, "/b").get(name)
    assert (caught.value.code, http.asked) == (ErrorCode.NOT_FOUND, [])


async def test_an_unknown_blob_is_not_found_as_the_callback_says_it() -> None:
    with pytest.raises(CallFailed) as caught:
        await in_memory().get("0" * 64)
    assert (caught.value.code, caught.value.method) == (ErrorCode.NOT_FOUND, "blobs/get")
    assert "0" * 64 in caught.value.message
    assert caught.value.data == {"http_status": 404}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, ErrorCode.CONFIGURATION_ERROR),
        (400, ErrorCode.INVALID_VALUE),
        (401, ErrorCode.CONFIGURATION_ERROR),
        (403, ErrorCode.CONFIGURATION_ERROR),
        (404, ErrorCode.NOT_FOUND),
        (413, ErrorCode.INVALID_VALUE),
        (421, ErrorCode.CONFIGURATION_ERROR),
        (500, ErrorCode.RUNTIME_INTERNAL),
        (502, ErrorCode.RUNTIME_INTERNAL),
    ],
)
async def test_every_error_status_has_a_code(status: int, code: int) -> None:
    body = b'{"code":0,"message":"what is wrong"}'
    for ask in ("put", "get"):
        client = scripted(Answer(status, {}, body))
        with pytest.raises(CallFailed) as caught:
            await (client.put(1) if ask == "put" else client.get("0" * 64))
        assert (caught.value.code, caught.value.method) == (code, f"blobs/{ask}")
        assert caught.value.message == f"the blob server answered {status}: what is wrong"
        assert type(caught.value) is CallFailed


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error":"from a guard"}', "answered 400: from a guard"),
        (b"plain text", "answered 400: plain text"),
        (b"", "answered 400"),
        (b"\xff\x1b[31m\r\nforged", "answered 400: �?[31m??forged"),
        (b'{"message":"a\\u0000\\nb"}', "answered 400: a??b"),
        (b'{"message":7}', 'answered 400: {"message":7}'),
        (b"x" * 100_000, "answered 400: " + "x" * 500),
    ],
)
async def test_what_the_server_says_is_told_without_what_could_forge_a_log(body: bytes, says: str) -> None:
    with pytest.raises(CallFailed) as caught:
        await scripted(Answer(400, {}, body)).put(1)
    assert caught.value.message == f"the blob server {says}"


async def test_a_server_at_its_limit_is_asked_again_after_the_pause_it_wants(autojump_clock: Any) -> None:
    http = Scripted(
        Answer(503, {b"retry-after": b"2"}),
        Answer(429, {b"retry-after": b"3600"}),
        Answer(503, {b"retry-after": b"nonsense"}),
        Answer(200, OF_JSON, json.dumps({"blobId": EXAMPLE_ID}).encode()),
    )
    assert await over(http, "/b").put(EXAMPLE) == EXAMPLE_ID
    assert http.at == [0, 2, 7, 8]


async def test_a_server_that_stays_at_its_limit_is_overloaded(autojump_clock: Any) -> None:
    http = Scripted(*[Answer(503, {b"retry-after": b"1.0"}) for _ in range(10)])
    with pytest.raises(Overloaded) as caught:
        await over(http, "/b").put(EXAMPLE)
    assert caught.value.retry_after_s == 1
    assert http.at == [0, 1, 2, 3]


# ---- time, and many at once -----------------------------------------------------------------------------


async def test_a_silent_server_is_a_timeout(autojump_clock: Any) -> None:
    with pytest.raises(CallTimeout) as caught:
        await scripted(None).get(EXAMPLE_ID)
    assert (caught.value.method, caught.value.after_s) == ("blobs/get", PATIENCE_S)
    assert trio.current_time() == PATIENCE_S


async def test_an_upload_has_time_for_what_it_weighs(autojump_clock: Any) -> None:
    with pytest.raises(CallTimeout):
        await scripted(None).put_binary(b"x" * 2**20)
    assert trio.current_time() == PATIENCE_S + 16


async def test_a_server_that_drips_is_a_timeout_and_a_slow_one_is_not(autojump_clock: Any) -> None:
    class Slow(Answer):
        async def receive_some(self) -> bytes:
            await trio.sleep(10)
            return await super().receive_some()

    content = b"x" * 2**20
    blob_id = hashlib.sha256(content).hexdigest()
    pieces = [content[at : at + 2**19] for at in range(0, 2**20, 2**19)]
    assert await scripted(Slow(200, OF_BINARY, *pieces)).get(blob_id) == content
    with pytest.raises(CallTimeout):
        await scripted(Slow(200, OF_BINARY, *[b"x"] * 100)).get(blob_id)
    assert trio.current_time() == pytest.approx(30 + PATIENCE_S, abs=0.01)


async def test_no_more_requests_are_open_than_there_are_places(autojump_clock: Any) -> None:
    most = 0

    class Slow(MemoryBlobStore):
        async def get(self, blob_id: str) -> Blob:
            nonlocal most
            most = max(most, http.open)
            await trio.sleep(1)
            return await super().get(blob_id)

    store = Slow()
    http = InMemory(BlobApi(store))
    client = over(http, "/api/v1/blobs")
    ids = [await client.put(n) for n in range(3 * MAX_REQUESTS)]
    async with trio.open_nursery() as nursery:
        for blob_id in ids:
            nursery.start_soon(client.get, blob_id)
    assert (most, trio.current_time()) == (MAX_REQUESTS, 3)


def test_cancelling_anywhere_gives_the_place_back() -> None:
    async def scenario(cancellable: Cancellable) -> None:
        http = InMemory(BlobApi(MemoryBlobStore()))
        client = over(http, "/api/v1/blobs")
        with cancellable:
            await client.get(await client.put(EXAMPLE))
        assert http.open == 0
        assert client._places.value == MAX_REQUESTS
        assert await client.get(await client.put(EXAMPLE)) == EXAMPLE

    cancel_everywhere(scenario)


# ---- a component's context ------------------------------------------------------------------------------


@asynccontextmanager
async def context_with(client: BlobClient) -> AsyncGenerator[Context]:
    near, far = memory_link_pair()
    async with open_connection(far, Handlers()), open_connection(near, Handlers()) as connection:
        context = Context(connection, Hello(dialect=Dialect.V0_11, version=1), component="/x")
        context.use_blobs(client)
        yield context  # its runtime answers no callback


async def test_a_context_with_a_client_stores_and_reads_over_it(autojump_clock: Any) -> None:
    store = MemoryBlobStore()
    async with context_with(in_memory(store)) as context:
        assert await context.put_blob(EXAMPLE) == EXAMPLE_ID
        assert await context.get_blob(EXAMPLE_ID) == EXAMPLE
        assert await context.get_blob(await context.put_blob(bytearray(b"\x00\xff"))) == b"\x00\xff"
        flow_id = await context.put_blob({"steps": []}, "flow")
        assert (await store.get(flow_id)).blob_type == "flow"
        with pytest.raises(CallFailed) as caught:
            await context.get_blob("0" * 64)
        assert caught.value.code == ErrorCode.NOT_FOUND
        with pytest.raises(OutputInvalid):
            await context.put_blob({1, 2})


async def test_a_context_that_is_over_asks_for_no_blob(autojump_clock: Any) -> None:
    http = Scripted()
    async with context_with(over(http, "/b")) as context:
        context.leave(context.enter())
        for ask in (context.put_blob(1), context.put_blob(b"1"), context.get_blob(EXAMPLE_ID)):
            with pytest.raises(LocalProtocolError, match="over"):
                await ask
    assert http.asked == []


async def test_a_component_s_blobs_take_its_places_for_callbacks(autojump_clock: Any) -> None:
    http = Scripted(*[None] * 100)
    clients = [over(http, "/b") for _ in range(8)]  # each has places for fewer
    async with context_with(clients[0]) as context, trio.open_nursery() as nursery:
        for n in range(100):
            context._blob_client = clients[n % 8]
            nursery.start_soon(context.get_blob, EXAMPLE_ID)
            await wait_all_tasks_blocked()
        assert len(http.asked) == 64
        nursery.cancel_scope.cancel()
