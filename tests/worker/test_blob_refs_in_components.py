"""References to blobs in what components take, which are resolved, and in what they return."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import trio

from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConnectionLost,
    ErrorCode,
    LossReason,
    RemoteProtocolError,
    RpcError,
)
from stepflow_trio.protocol import blob_refs, blobs, codec
from stepflow_trio.protocol.blob_refs import MAX_ROUNDS
from stepflow_trio.testing import Cancellable, cancel_everywhere
from stepflow_trio.worker.blob_client import BlobClient, BlobContent
from stepflow_trio.worker.blob_refs import offload_output, resolve_input
from stepflow_trio.worker.outputs import check_output


class Blobs(BlobClient):
    """A server's blobs, without the server."""

    def __init__(self, *, takes_s: float = 0) -> None:
        self.stored: dict[str, BlobContent] = {}
        self.got: list[str] = []
        self.running = self.most = 0
        self.failure: Exception | None = None
        self._takes_s = takes_s

    def add(self, value: Any, kind: str = "data") -> str:
        content = value if isinstance(value, bytes) else codec.encode_json(value)
        blob_id = blobs.blob_id(content)
        self.stored[blob_id] = BlobContent(content, kind)
        return blob_id

    def ref(self, value: Any, kind: str = "data") -> dict[str, Any]:
        blob_id = self.add(value, kind)
        return {"$blob": blob_id} if kind == "data" else {"$blob": blob_id, "blobType": kind}

    async def get_content(self, blob_id: str) -> BlobContent:
        self.got.append(blob_id)
        await self._work()
        try:
            return self.stored[blob_id]
        except KeyError:
            raise CallFailed(ErrorCode.NOT_FOUND, "the blob server answered 404") from None

    async def put_json(self, text: bytes, blob_type: str = blobs.DATA) -> str:
        await self._work()
        return self.add(text, blob_type)

    async def _work(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(self._takes_s)
            if self.failure is not None:
                raise self.failure
        finally:
            self.running -= 1


async def refused(input: Any, client: BlobClient) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await resolve_input(input, client)
    assert type(caught.value) is RpcError
    return caught.value


# ---- what components take -------------------------------------------------------------------------------


async def test_content_stands_in_the_place_of_every_reference() -> None:
    client = Blobs()
    text, flow, raw = client.ref("long text"), client.ref({"steps": []}, "flow"), client.ref(b"hi", "binary")
    resolved = await resolve_input(
        {"a": text, "b": [1, {"c": flow}], "d": raw, "e": {"$blob": "none"}}, client
    )
    assert resolved == {
        "a": "long text",
        "b": [1, {"c": {"steps": []}}],
        "d": "aGk=",
        "e": {"$blob": "none"},
    }
    assert list(resolved) == ["a", "b", "d", "e"]


async def test_a_whole_input_may_be_a_reference() -> None:
    client = Blobs()
    assert await resolve_input(client.ref([1, 2]), client) == [1, 2]


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"a": [{"b": {"$blob": 1}}]}])
async def test_an_input_without_references_is_left_alone_and_nothing_is_asked(value: Any) -> None:
    client = Blobs()
    with trio.testing.assert_no_checkpoints():
        assert await resolve_input(value, client) is value
    assert client.got == []


async def test_the_type_that_the_reference_names_counts() -> None:
    # Content is stored once, under the type that it came with first: so the server may name another one.
    client = Blobs()
    blob_id = client.add(b"[1]", "binary")
    assert await resolve_input({"$blob": blob_id}, client) == [1]
    assert await resolve_input({"$blob": blob_id, "blobType": "binary"}, client) == "WzFd"


async def test_references_in_content_are_resolved_too() -> None:
    client = Blobs()
    ref = client.ref("bottom")
    for _ in range(MAX_ROUNDS - 1):
        ref = client.ref({"next": [ref]})
    resolved = await resolve_input(ref, client)
    for _ in range(MAX_ROUNDS - 1):
        [resolved] = resolved["next"]
    assert resolved == "bottom"


async def test_references_are_not_followed_without_end() -> None:
    client = Blobs()
    ref = client.ref("bottom")
    for _ in range(MAX_ROUNDS):
        ref = client.ref([ref])
    error = await refused({"a": ref}, client)
    assert error.code == ErrorCode.INVALID_VALUE
    assert error.data == {"blob_id": blobs.blob_id(b'"bottom"'), "path": "$.a" + "[0]" * MAX_ROUNDS}
    assert f"{MAX_ROUNDS} times" in error.message


async def test_a_blob_is_fetched_once_and_no_two_places_share_what_it_holds() -> None:
    client = Blobs()
    ref = client.ref({"n": [0]})
    resolved = await resolve_input([dict(ref), dict(ref)], client)
    assert len(client.got) == 1
    resolved[0]["n"].append(1)
    assert resolved == [{"n": [0, 1]}, {"n": [0]}]


async def test_blobs_are_fetched_at_the_same_time(autojump_clock: Any) -> None:
    client = Blobs(takes_s=1)
    assert await resolve_input([client.ref(n) for n in range(10)], client) == list(range(10))
    assert (client.most, trio.current_time()) == (10, 1)


async def test_a_missing_blob_is_an_error_that_the_runtime_may_retry() -> None:
    client = Blobs()
    error = await refused({"a b": [{"$blob": "0" * 64}]}, client)
    assert error.code == ErrorCode.TRANSPORT_ERROR
    assert error.data == {"blob_id": "0" * 64, "path": '$["a b"][0]'}
    assert error.message == (
        f'the input refers to blob {"0" * 64} at $["a b"][0]: it cannot be read: '
        "the blob server answered 404 (code -32005)"
    )
    assert isinstance(error.__cause__, CallFailed)


@pytest.mark.parametrize(
    "failure",
    [
        CallTimeout("blobs/get", 30),
        ConnectionLost(LossReason.PEER_CLOSED),
        RemoteProtocolError("other content"),
    ],
)
async def test_whatever_goes_wrong_is_one_error_and_ends_what_else_is_fetched(
    autojump_clock: Any, failure: Exception
) -> None:
    client = Blobs(takes_s=1)
    client.failure = failure
    error = await refused([client.ref(n) for n in range(20)], client)
    assert error.code == ErrorCode.TRANSPORT_ERROR
    assert error.__cause__ is failure
    assert client.running == 0


async def test_a_failure_does_not_wait_for_what_else_is_fetched(autojump_clock: Any) -> None:
    class Uneven(Blobs):
        async def get_content(self, blob_id: str) -> BlobContent:
            if blob_id in self.stored:
                await trio.sleep(100)
            return await super().get_content(blob_id)

    client = Uneven()
    await refused([client.ref(1), {"$blob": "0" * 64}, client.ref(2)], client)
    assert trio.current_time() == 0


async def test_content_that_is_no_json_is_an_error_that_is_not_retried() -> None:
    client = Blobs()
    error = await refused({"a": client.ref(b"{nope")}, client)
    assert error.code == ErrorCode.INVALID_VALUE
    assert "at $.a: its content cannot be put there: JSON is malformed" in error.message


async def test_an_input_is_never_deeper_than_one_without_references_could_be() -> None:
    def nested(levels: int) -> Any:
        value: Any = []
        for _ in range(levels - 1):
            value = [value]
        return value

    client = Blobs()
    assert await resolve_input({"a": client.ref(nested(127))}, client) == {"a": nested(127)}
    error = await refused({"a": client.ref(nested(128))}, client)
    assert error.code == ErrorCode.INVALID_VALUE
    assert "nested deeper than 127" in error.message


async def test_references_are_counted_over_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_refs, "MAX_REFS", 6)
    client = Blobs()
    two = client.ref([client.ref(1), client.ref(1)])
    assert await resolve_input([two, two], client) == [[1, 1], [1, 1]]
    client.got.clear()
    error = await refused([two, two, two], client)
    assert error.code == ErrorCode.INVALID_VALUE
    assert "more than 6 references" in error.message
    assert len(client.got) == 1, "the second round is not fetched"


async def test_a_few_small_blobs_cannot_stand_for_more_than_there_is_room(autojump_clock: Any) -> None:
    client = Blobs()
    ref = client.ref("x" * 1000)
    for _ in range(5):
        ref = client.ref([ref] * 1000)
    error = await refused(ref, client)
    assert error.code == ErrorCode.INVALID_VALUE
    assert len(client.got) <= 3


async def test_bytes_are_counted_as_often_as_they_are_put_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_refs, "MAX_RESOLVED_BYTES", 30)
    client = Blobs()
    ref = client.ref("x" * 8)
    assert await resolve_input([ref] * 3, client) == ["x" * 8] * 3
    error = await refused([ref] * 4, client)
    assert error.code == ErrorCode.INVALID_VALUE
    assert "30 bytes" in error.message


def test_resolving_can_be_cancelled_anywhere() -> None:
    async def scenario(cancellable: Cancellable) -> None:
        client = Blobs(takes_s=1)
        refs = [client.ref([client.ref(n)]) for n in range(3)]
        with cancellable:
            assert await resolve_input(refs, client) == [[0], [1], [2]]
        assert client.running == 0

    cancel_everywhere(scenario)


# ---- what components return -----------------------------------------------------------------------------


async def test_large_fields_are_stored_and_the_output_stays_as_it_was() -> None:
    client = Blobs()
    output = {"z": 1, "large": ["x" * 100], "a": "ä" * 60}
    before = dict(output)
    offloaded = await offload_output(output, client, 100)
    assert offloaded == {
        "z": 1,
        "large": {"$blob": hashlib.sha256(codec.encode_json(["x" * 100])).hexdigest(), "size": 104},
        "a": {"$blob": hashlib.sha256(codec.encode_json("ä" * 60)).hexdigest(), "size": 122},
    }
    assert list(offloaded) == ["z", "large", "a"]
    assert output == before
    assert await resolve_input(offloaded, client) == output


@pytest.mark.parametrize("output", [None, 1, "x" * 200, ["x" * 200], {}, {"a": "x" * 98}])
@pytest.mark.parametrize("threshold", [100, 0])
async def test_an_output_without_large_fields_is_sent_as_it_is(output: Any, threshold: int) -> None:
    with trio.testing.assert_no_checkpoints():
        assert await offload_output(output, Blobs(), threshold) is output


class Report(msgspec.Struct, rename="camel"):
    short_name: str
    whole_text: str


@dataclass
class Picture:
    name: str
    content: bytes


async def test_the_fields_of_records_are_those_that_are_written() -> None:
    client = Blobs()
    report = check_output(Report("r", "x" * 200))
    offloaded = await offload_output(report, client, 100)
    assert offloaded["shortName"] == "r"
    assert await resolve_input(offloaded, client) == {"shortName": "r", "wholeText": "x" * 200}
    picture = check_output(Picture("p", b"\xff" * 200))
    offloaded = await offload_output(picture, client, 100)
    assert list(offloaded["content"]) == ["$blob", "size"]
    small = check_output(Report("r", "x"))
    assert await offload_output(small, client, 100) is small


async def test_fields_are_stored_at_the_same_time(autojump_clock: Any) -> None:
    client = Blobs(takes_s=1)
    await offload_output({str(n): "x" * 100 for n in range(5)}, client, 10)
    assert trio.current_time() == 1


@pytest.mark.parametrize(
    "failure",
    [
        CallFailed(ErrorCode.INVALID_VALUE, "the blob server answered 413"),
        CallTimeout("blobs/put", 30),
        ConnectionLost(LossReason.STREAM_ERROR),
        RemoteProtocolError("no id"),
    ],
)
async def test_a_field_that_cannot_be_stored_is_sent_as_it_is_and_the_log_says_why(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client = Blobs()
    client.failure = failure
    output = {"a": "secret" * 100, "b": 1}
    with caplog.at_level(logging.WARNING, "stepflow_trio"):
        assert await offload_output(output, client, 100) == output
    [line] = caplog.messages
    assert "602 bytes" in line
    assert str(failure) in line
    assert "secret" not in line


def test_offloading_can_be_cancelled_anywhere() -> None:
    async def scenario(cancellable: Cancellable) -> None:
        client = Blobs(takes_s=1)
        with cancellable:
            await offload_output({"a": "x" * 100, "b": "y" * 100}, client, 10)
        assert client.running == 0

    cancel_everywhere(scenario)
