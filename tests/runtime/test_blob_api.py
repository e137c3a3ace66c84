"""The blob API as its clients meet it: what it stores, what it answers, and what never reaches the store."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.errors import BlobNotFound
from stepflow_trio.protocol import blobs, codec
from stepflow_trio.runtime.blob_api import PIECE_BYTES, BlobApi
from stepflow_trio.runtime.callbacks import store_blob
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore
from stepflow_trio.testing import Cancellable, RandomSample, cancel_everywhere

BLOBS = "/api/v1/blobs"
JSON = ("content-type", "application/json")
BINARY = ("content-type", "application/octet-stream")
WANTS_BYTES = ("accept", "application/octet-stream")

EXAMPLE = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
EXAMPLE_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"

GONE = object()
"""Among the pieces of a body: here the client goes away."""

MiB = 2**20


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    pieces: list[int] = field(default_factory=list[int])
    is_complete: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request to the application, and what becomes of it."""

    def __init__(
        self,
        app: BlobApi,
        method: str,
        path: str,
        *headers: tuple[str, str],
        pieces: Sequence[Any] = (b"",),
        before_send: Callable[[], Awaitable[None]] | None = None,
        keep_body: bool = True,
    ) -> None:
        self.app = app
        raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        self.scope = {"type": "http", "method": method, "path": path, "headers": raw_headers}
        self.pieces = list(pieces)
        self.answer = Answer()
        self.gone = trio.Event()
        self.received = 0
        self._before_send = before_send
        self._keep_body = keep_body

    async def run(self) -> Answer:
        await self.app(self.scope, self.receive, self.send)
        return self.answer

    async def receive(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if self.pieces:
            self.received += 1
            piece = self.pieces.pop(0)
            if piece is GONE:
                self.pieces.insert(0, GONE)
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self._before_send is not None:
            await self._before_send()
        await trio.lowlevel.checkpoint()
        answer = self.answer
        assert not answer.is_complete
        if message["type"] == "http.response.start":
            assert answer.status == 0
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            assert answer.status
            answer.pieces.append(len(message["body"]))
            if self._keep_body:
                answer.body += message["body"]
            answer.is_complete = not message.get("more_body", False)


async def ask(
    app: BlobApi, method: str, path: str, *headers: tuple[str, str], body: bytes | None = None
) -> Answer:
    if body is not None:
        headers += (("content-length", str(len(body))),)
    answer = await Exchange(app, method, path, *headers, pieces=[body or b""]).run()
    assert answer.is_complete
    if method != "HEAD":
        assert len(answer.body) == int(answer.headers["content-length"])
    return answer


async def store(app: BlobApi, body: Any, *headers: tuple[str, str]) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return await ask(app, "POST", BLOBS, *(headers or (JSON,)), body=text)


async def read(app: BlobApi, blob_id: str, *headers: tuple[str, str]) -> Answer:
    return await ask(app, "GET", f"{BLOBS}/{blob_id}", *headers)


class SeenStore(MemoryBlobStore):
    """Knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.stored: list[Blob] = []

    async def get(self, blob_id: str) -> Blob:
        self.asked.append(blob_id)
        return await super().get(blob_id)

    async def put(self, content: bytes, blob_type: str, filename: str | None = None) -> str:
        self.stored.append(Blob(content, blob_type, filename))
        return await super().put(content, blob_type, filename)


@pytest.fixture
def kept() -> SeenStore:
    return SeenStore()


@pytest.fixture
def app(kept: SeenStore) -> BlobApi:
    return BlobApi(kept)


# ---- the shapes of the public releases ------------------------------------------------------------------


async def test_json_is_stored_under_the_id_of_the_specification_and_read_as_it_was(app: BlobApi) -> None:
    stored = await store(app, {"data": EXAMPLE})
    assert (stored.status, stored.json) == (200, {"blobId": EXAMPLE_ID})
    assert stored.headers["content-type"] == "application/json"
    got = await read(app, EXAMPLE_ID)
    assert got.status == 200
    assert got.body == codec.encode_json({"data": EXAMPLE, "blobType": "data", "blobId": EXAMPLE_ID})


async def test_a_file_name_is_kept_and_told(app: BlobApi) -> None:
    stored = await store(app, {"data": 1, "blobType": "flow", "filename": "a b.json"})
    blob_id = stored.json["blobId"]
    assert stored.json == {"blobId": blob_id, "filename": "a b.json"}
    got = await read(app, blob_id)
    assert got.json == {"data": 1, "blobType": "flow", "blobId": blob_id, "filename": "a b.json"}


async def test_binary_content_goes_in_and_out_as_it_is(app: BlobApi) -> None:
    content = bytes(range(256))
    stored = await store(app, content, BINARY, ("x-blob-filename", "all.bin"))
    blob_id = hashlib.sha256(content).hexdigest()
    assert stored.json == {"blobId": blob_id, "filename": "all.bin"}
    got = await read(app, blob_id, WANTS_BYTES)
    assert (got.status, got.body) == (200, content)
    assert got.headers == {
        "content-type": "application/octet-stream",
        "content-length": "256",
        "x-blob-type": "binary",
        "content-disposition": 'attachment; filename="all.bin"',
        "x-content-type-options": "nosniff",
    }


async def test_binary_content_is_base64_text_in_json_both_ways(app: BlobApi, kept: SeenStore) -> None:
    content = b"\x00\xff\x10"
    text = base64.b64encode(content).decode()
    stored = await store(app, {"data": text, "blobType": "binary"})
    assert kept.stored == [Blob(content, "binary")]
    got = await read(app, stored.json["blobId"])
    assert got.json == {"data": text, "blobType": "binary", "blobId": hashlib.sha256(content).hexdigest()}
    assert (await read(app, stored.json["blobId"], WANTS_BYTES)).body == content


async def test_json_is_read_as_its_text_too(app: BlobApi) -> None:
    stored = await store(app, b'{ "data": {"b": "\\u00e4", "a": 1.50} }')
    got = await read(app, stored.json["blobId"], WANTS_BYTES, ("accept", "text/html"))
    assert got.body == '{"b":"ä","a":1.5}'.encode()
    assert got.headers["x-blob-type"] == "data"
    assert "content-disposition" not in got.headers
    assert hashlib.sha256(got.body).hexdigest() == stored.json["blobId"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html", ""])
async def test_json_is_the_answer_unless_bytes_are_asked_for(app: BlobApi, accept: str) -> None:
    stored = await store(app, b"x", BINARY)
    got = await read(app, stored.json["blobId"], ("accept", accept))
    assert (got.status, got.json["data"]) == (200, "eA==")


async def test_the_same_content_is_stored_once_with_its_first_type_and_name(app: BlobApi) -> None:
    first = await store(app, b"[1]", BINARY, ("x-blob-filename", "first"))
    second = await store(app, {"data": [1], "filename": "second"})
    assert second.json["blobId"] == first.json["blobId"]
    got = await read(app, first.json["blobId"])
    assert (got.json["blobType"], got.json["filename"]) == ("binary", "first")


async def test_a_head_request_is_answered_as_a_get_without_its_body(app: BlobApi) -> None:
    stored = await store(app, b"x" * 3 * PIECE_BYTES, BINARY)
    for accept in (WANTS_BYTES, ("accept", "*/*")):
        got = await read(app, stored.json["blobId"], accept)
        head = await ask(app, "HEAD", f"{BLOBS}/{stored.json['blobId']}", accept)
        assert (head.status, head.headers, head.body) == (200, got.headers, b"")
    head = await ask(app, "HEAD", f"{BLOBS}/{'0' * 64}")
    assert (head.status, head.body) == (404, b"")


async def test_it_is_found_below_the_root_path_of_its_host(kept: SeenStore) -> None:
    app = BlobApi(kept, path="/blobs")
    exchange = Exchange(app, "POST", "/runtime/blobs", JSON, pieces=[b'{"data":1}'])
    exchange.scope["root_path"] = "/runtime"
    assert (await exchange.run()).status == 200


# ---- ids ------------------------------------------------------------------------------------------------

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
@given(VALUES)
def test_every_value_comes_back_and_has_the_id_that_the_callback_gives_it(value: Any) -> None:
    async def main() -> None:
        app = BlobApi(MemoryBlobStore())
        stored = await store(app, {"data": value})
        assert stored.json["blobId"] == await store_blob(MemoryBlobStore(), value, "data")
        # Compared as text, in which keys have an order and 1 is not 1.0 nor True.
        got = await read(app, stored.json["blobId"])
        assert codec.encode_json(got.json["data"]) == codec.encode_json(value)
        content = await read(app, stored.json["blobId"], WANTS_BYTES)
        assert hashlib.sha256(content.body).hexdigest() == stored.json["blobId"]

    trio.run(main)


async def test_huge_integers_and_the_order_of_keys_are_kept(app: BlobApi) -> None:
    text = b'{"z":123456789012345678901234567890,"a":18446744073709551615,"m":-9223372036854775808}'
    stored = await store(app, b'{"data":' + text + b"}")
    assert stored.json["blobId"] == hashlib.sha256(text).hexdigest()
    assert (await read(app, stored.json["blobId"], WANTS_BYTES)).body == text


async def test_an_id_may_have_the_prefix_that_old_documents_write(app: BlobApi) -> None:
    await store(app, {"data": EXAMPLE})
    got = await read(app, f"sha256:{EXAMPLE_ID}")
    assert got.json["blobId"] == EXAMPLE_ID


async def test_an_unknown_id_is_not_found(app: BlobApi) -> None:
    got = await read(app, "0" * 64)
    assert got.status == 404
    assert got.headers["content-type"] == "application/json"
    assert got.json == {"code": 404, "message": f"Blob {'0' * 64} not found"}


@pytest.mark.parametrize(
    "name",
    [
        "", "5e43", EXAMPLE_ID[:-1], EXAMPLE_ID + "0", EXAMPLE_ID.upper(), EXAMPLE_ID + "\n",
        EXAMPLE_ID + "/", " " + EXAMPLE_ID, "../" + EXAMPLE_ID, "../../etc/passwd", "..",
        "%2e%2e/" + EXAMPLE_ID, "\0" * 64, EXAMPLE_ID + "\0", "g" * 64, "٣" * 64, "\U0001d7d8" * 64,
        "x" * 100_000,
        EXAMPLE_ID[:32] + "/" + EXAMPLE_ID[33:], "sha256:", "sha256:sha256:" + EXAMPLE_ID,
        "SHA256:" + EXAMPLE_ID,
        "'; DROP TABLE blobs; --", "\udcff" * 64, "\r\nx-evil: 1", "/" + EXAMPLE_ID, "*", "?" + EXAMPLE_ID,
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_no_id_is_not_found_and_never_reaches_the_store(
    app: BlobApi, kept: SeenStore, name: str, method: str
) -> None:
    await store(app, {"data": EXAMPLE})
    got = await ask(app, method, f"{BLOBS}/{name}")
    assert got.status == 404
    assert kept.asked == []
    if method == "GET":
        assert got.json["code"] == 404
        assert len(got.body) < 1200


async def test_changed_content_is_an_error_whichever_bit_it_is(app: BlobApi, kept: SeenStore) -> None:
    content = b'{"a":1}'
    blob_id = await kept.put(content, "data")
    for bit in range(len(content) * 8):
        rotten = bytearray(content)
        rotten[bit // 8] ^= 1 << bit % 8
        kept._blobs[blob_id] = Blob(bytes(rotten), "data")
        for accept in (WANTS_BYTES, JSON):
            got = await read(app, blob_id, accept)
            assert got.status == 500
            assert got.json == {
                "code": 500,
                "message": f"Blob {blob_id} is damaged: its content has another hash",
            }


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", BLOBS, 405, "POST"),
        ("DELETE", BLOBS, 405, "POST"),
        ("HEAD", BLOBS, 405, "POST"),
        ("OPTIONS", BLOBS, 405, "POST"),
        ("POST", f"{BLOBS}/{EXAMPLE_ID}", 405, "GET, HEAD"),
        ("DELETE", f"{BLOBS}/{EXAMPLE_ID}", 405, "GET, HEAD"),
        ("PUT", f"{BLOBS}/x", 405, "GET, HEAD"),
        ("POST", f"{BLOBS}x", 404, None),
        ("GET", "/", 404, None),
        ("GET", "/api/v1", 404, None),
    ],
)
async def test_other_methods_and_paths_are_refused(
    app: BlobApi, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = await ask(app, method, path)
    assert (answer.status, answer.headers.get("allow")) == (status, allow)
    if method != "HEAD":
        assert answer.json["code"] == status


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "application/json, text/plain"],
)
async def test_other_content_types_are_refused(
    app: BlobApi, kept: SeenStore, content_type: str | None
) -> None:
    headers = [] if content_type is None else [("content-type", content_type)]
    answer = await ask(app, "POST", BLOBS, *headers, body=b'{"data":1}')
    assert (answer.status, kept.stored) == (415, [])
    assert "application/octet-stream" in answer.json["message"]


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;x"]
)
async def test_a_content_type_may_have_parameters(app: BlobApi, content_type: str) -> None:
    assert (await store(app, {"data": 1}, ("content-type", content_type))).status == 200


async def test_two_content_types_are_none(app: BlobApi, kept: SeenStore) -> None:
    assert (await store(app, b'{"data":1}', BINARY, JSON)).status == 415
    assert kept.stored == []


async def test_compressed_bodies_are_refused(app: BlobApi, kept: SeenStore) -> None:
    assert (await store(app, b"x", BINARY, ("content-encoding", "gzip"))).status == 415
    assert kept.stored == []
    assert (await store(app, b"x", BINARY, ("content-encoding", "identity"))).status == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is not JSON"),
        (b'{"data": 1', "the body is not JSON"),
        (b'{"data": ?}', "(byte 9)"),
        (b'{"data": "\xff"}', "(byte 10)"),
        (b'{"data": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper than 128"),
        (b'{"data": 1e400}', "not JSON"),
        (b'{"data": "\\ud800"}', "not JSON"),
        (b"[1]", "at $"),
        (b"{}", "`data`"),
        (b'{"blobType": "data"}', "`data`"),
        (b'{"data": 1, "blobType": 7}', "at $.blobType"),
        (b'{"data": 1, "blobType": null}', "at $.blobType"),
        (b'{"data": 1, "blobType": "parquet"}', "'parquet' at $.blobType"),
        (b'{"data": 1, "filename": 7}', "at $.filename"),
        (b'{"data": 1, "filename": "a\\nb"}', "at $.filename"),
        (b'{"data": 1, "blobType": "binary"}', "base64"),
        (b'{"data": "a", "blobType": "binary"}', "at $.data"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_the_place(
    app: BlobApi, kept: SeenStore, body: bytes, says: str
) -> None:
    answer = await store(app, body, JSON)
    assert (answer.status, answer.json["code"], kept.stored) == (400, 400, [])
    assert says in answer.json["message"]


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(st.binary(max_size=40), st.sampled_from([JSON, BINARY]))
def test_any_bytes_at_all_are_stored_or_refused(body: bytes, content_type: tuple[str, str]) -> None:
    async def main() -> None:
        answer = await store(BlobApi(MemoryBlobStore()), body, content_type)
        assert answer.status == (200 if content_type is BINARY else 400)

    trio.run(main)


# ---- names of files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "disposition"),
    [
        ("report.csv", 'attachment; filename="report.csv"'),
        ("with space (1).txt", 'attachment; filename="with space (1).txt"'),
        ('a"b.txt', "attachment; filename=\"a_b.txt\"; filename*=UTF-8''a%22b.txt"),
        ('"; filename="evil.exe', None),
        ("a\\b.txt", 'attachment; filename="b.txt"'),
        ("../../etc/passwd", 'attachment; filename="passwd"'),
        ("ä.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A4.txt"),
        ("100%41.txt", "attachment; filename=\"100_41.txt\"; filename*=UTF-8''100%2541.txt"),
        ("", 'attachment; filename=""'),
    ],
)
async def test_no_file_name_breaks_out_of_its_header(
    app: BlobApi, filename: str, disposition: str | None
) -> None:
    stored = await store(app, {"data": 1, "filename": filename})
    got = await read(app, stored.json["blobId"], WANTS_BYTES)
    written = got.headers["content-disposition"]
    assert written == disposition or disposition is None
    assert written.count('"') == 2
    assert written.isascii()
    assert written.isprintable()
    assert (await read(app, stored.json["blobId"])).json["filename"] == filename


async def test_a_name_in_a_header_may_be_utf_8_or_latin_1(app: BlobApi, kept: SeenStore) -> None:
    for raw in ("ä".encode(), "ä".encode("latin-1")):
        await store(app, b"x", BINARY, ("x-blob-filename", raw.decode("latin-1")))
    assert [blob.filename for blob in kept.stored] == ["ä", "ä"]


@pytest.mark.parametrize("filename", ["x" * 256, "a\tb", "a\x7f"])
async def test_a_name_that_is_too_long_or_has_control_characters_is_refused(
    app: BlobApi, kept: SeenStore, filename: str
) -> None:
    answer = await store(app, b"x", BINARY, ("x-blob-filename", filename))
    assert (answer.status, kept.stored) == (400, [])
    assert "X-Blob-Filename" in answer.json["message"]
    assert (await store(app, b"x", BINARY, ("x-blob-filename", "x" * 255))).status == 200


# ---- sizes ----------------------------------------------------------------------------------------------


async def test_a_body_of_the_longest_length_is_taken_and_one_byte_more_is_not(kept: SeenStore) -> None:
    app = BlobApi(kept, max_blob_bytes=10)
    assert (await store(app, b"x" * 10, BINARY)).status == 200
    assert (await store(app, b'{"data":1}', JSON)).status == 200
    for headers in ([BINARY], [BINARY, ("content-length", "11")]):
        exchange = Exchange(app, "POST", BLOBS, *headers, pieces=[b"x" * 6, b"x" * 5])
        answer = await exchange.run()
        assert (answer.status, answer.json["code"]) == (413, 413)
        assert "10 bytes" in answer.json["message"]
    assert len(kept.stored) == 2


async def test_a_body_announced_as_too_long_is_refused_before_it_is_received(kept: SeenStore) -> None:
    app = BlobApi(kept, max_blob_bytes=10)
    exchange = Exchange(app, "POST", BLOBS, BINARY, ("content-length", "1000"), pieces=[b"x" * 100] * 10)
    received_at_answer: list[int] = []

    async def before_send() -> None:
        received_at_answer.append(exchange.received)

    exchange._before_send = before_send
    answer = await exchange.run()
    assert answer.status == 413
    assert received_at_answer[0] == 0


async def test_what_is_left_of_a_refused_body_is_received_before_the_answer_ends(kept: SeenStore) -> None:
    # A host that closes at the answer's end would otherwise reset a client that is still writing.
    app = BlobApi(kept, max_blob_bytes=10)
    pieces = [b"x" * 100] * 50
    exchange = Exchange(app, "POST", BLOBS, BINARY, pieces=pieces)
    received: list[int] = []

    async def before_send() -> None:
        received.append(exchange.received)

    exchange._before_send = before_send
    answer = await exchange.run()
    assert (answer.status, answer.is_complete) == (413, True)
    assert received[-1] == 50


async def test_a_refused_body_that_never_ends_is_received_for_a_bounded_time(
    app: BlobApi, autojump_clock: Any
) -> None:
    exchange = Exchange(app, "POST", BLOBS, ("content-type", "text/plain"))

    async def receive() -> Any:
        await trio.sleep(0.1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    exchange.receive = receive  # type: ignore[method-assign]
    with trio.fail_after(60):
        answer = await exchange.run()
    assert (answer.status, answer.is_complete) == (415, True)
    assert trio.current_time() < 11


async def test_uploads_together_hold_no_more_than_their_bound(kept: SeenStore, autojump_clock: Any) -> None:
    app = BlobApi(kept, max_blob_bytes=100)
    begun = [Exchange(app, "POST", BLOBS, BINARY, pieces=[b"x" * 100, b""]) for _ in range(8)]
    go_on = trio.Event()
    for exchange in begun:
        receive = exchange.receive

        async def receive_slowly(exchange: Exchange = exchange, receive: Any = receive) -> Any:
            if exchange.received:
                await go_on.wait()
            return await receive()

        exchange.receive = receive_slowly  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        for exchange in begun:
            nursery.start_soon(exchange.run)
        await wait_all_tasks_blocked()
        late = await store(app, b"y", BINARY)
        assert (late.status, late.headers["retry-after"]) == (503, "1")
        go_on.set()
    assert [exchange.answer.status for exchange in begun] == [200] * 8
    assert (await store(app, b"y", BINARY)).status == 200
    assert "0 bytes are being received" in repr(app)


@pytest.mark.parametrize("accept", [WANTS_BYTES, ("accept", "application/json")], ids=["bytes", "json"])
async def test_a_slow_reader_of_50_mb_holds_one_piece(
    app: BlobApi, kept: SeenStore, autojump_clock: Any, accept: tuple[str, str]
) -> None:
    content = b"0123456789abcdef" * (50 * MiB // 16)
    blob_id = await kept.put(content, "binary")

    async def before_send() -> None:
        await trio.sleep(1)

    exchange = Exchange(app, "GET", f"{BLOBS}/{blob_id}", accept, before_send=before_send, keep_body=False)
    tracemalloc.start()
    try:
        answer = await exchange.run()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.is_complete) == (200, True)
    assert sum(answer.pieces) == int(answer.headers["content-length"])
    assert 64 * 2**10 < max(answer.pieces) < 257 * 2**10
    assert peak_bytes < MiB


async def test_content_of_any_length_is_cut_and_joined_right(app: BlobApi) -> None:
    for length in (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 2):
        content = bytes(n % 251 for n in range(length))
        blob_id = (await store(app, content, BINARY)).json["blobId"]
        assert (await read(app, blob_id, WANTS_BYTES)).body == content
        assert base64.b64decode((await read(app, blob_id)).json["data"]) == content
    text = "ä" * PIECE_BYTES
    blob_id = (await store(app, {"data": text})).json["blobId"]
    assert (await read(app, blob_id)).json["data"] == text


async def test_an_upload_of_50_mb_is_held_about_once(app: BlobApi, kept: SeenStore) -> None:
    piece = b"x" * 2**16
    tracemalloc.start()
    try:
        answer = await Exchange(app, "POST", BLOBS, BINARY, pieces=[piece] * 800).run()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 200
    assert len(kept.stored[0].content) == 50 * MiB
    assert peak_bytes < 70 * MiB


# ---- clients that go away -------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [JSON, BINARY])
async def test_an_upload_that_breaks_off_stores_nothing_and_answers_nobody(
    app: BlobApi, kept: SeenStore, content_type: tuple[str, str]
) -> None:
    for pieces in ([GONE], [b'{"data":1}', GONE], [b'{"data"', b":1}", b"", GONE]):
        exchange = Exchange(app, "POST", BLOBS, content_type, pieces=pieces)
        with trio.fail_after(1):
            await exchange.run()
        assert (exchange.answer.status, kept.stored) == (0, [])
    assert "0 bytes are being received" in repr(app)


async def test_a_reader_that_goes_away_ends_the_answer_at_once(
    app: BlobApi, kept: SeenStore, autojump_clock: Any
) -> None:
    blob_id = await kept.put(b"x" * 100 * PIECE_BYTES, "binary")

    async def before_send() -> None:
        await trio.sleep(1)

    exchange = Exchange(app, "GET", f"{BLOBS}/{blob_id}", WANTS_BYTES, before_send=before_send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.run)
        await trio.sleep(10.5)
        exchange.gone.set()
    assert trio.current_time() == 10.5
    assert not exchange.answer.is_complete


async def test_a_host_that_tells_by_an_error_that_the_client_is_gone_hears_of_no_other(
    app: BlobApi, kept: SeenStore
) -> None:
    blob_id = await kept.put(b"x" * 5 * PIECE_BYTES, "binary")
    for path in (f"{BLOBS}/{blob_id}", f"{BLOBS}/{'0' * 64}"):
        sent = 0

        async def before_send() -> None:
            nonlocal sent
            sent += 1
            if sent == 2:
                raise BrokenPipeError

        await Exchange(app, "GET", path, WANTS_BYTES, before_send=before_send).run()
        assert sent == 2


async def test_a_failing_store_is_its_host_s_to_report(app: BlobApi) -> None:
    class Broken(MemoryBlobStore):
        async def get(self, blob_id: str) -> Blob:
            raise OSError(5, "disk")

    exchange = Exchange(BlobApi(Broken()), "GET", f"{BLOBS}/{EXAMPLE_ID}")
    with pytest.raises(OSError, match="disk"):
        await exchange.run()
    assert exchange.answer.status == 0


def test_an_upload_cancelled_anywhere_is_stored_whole_or_not_at_all() -> None:
    content = b"x" * 3 * MiB

    async def upload(cancellable: Cancellable) -> None:
        store = MemoryBlobStore()
        app = BlobApi(store)
        with cancellable:
            await Exchange(app, "POST", BLOBS, BINARY, pieces=[content[:MiB], content[MiB:]]).run()
        try:
            assert (await store.get(blobs.blob_id(content))).content == content
        except BlobNotFound:
            assert store._blobs == {}
        assert "0 bytes are being received" in repr(app)

    cancel_everywhere(upload, strategy=RandomSample(40))


@pytest.mark.parametrize("path", ["", "blobs", "/blobs/", "/"])
def test_a_path_is_absolute_and_ends_in_a_name(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        BlobApi(MemoryBlobStore(), path=path)


def test_a_bound_is_positive() -> None:
    with pytest.raises(ValueError, match="max_blob_bytes"):
        BlobApi(MemoryBlobStore(), max_blob_bytes=0)
