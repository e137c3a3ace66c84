"""Whose rights a worker uses when it requests a URL of blobs: those of the runtime that named it."""

from __future__ import annotations

from typing import Any

import trio
from asgi_client import post
from worker_stage import EXTENSIONS, execute

from stepflow_trio import Worker
from stepflow_trio.protocol.blobs import MAX_BLOB_BYTES
from stepflow_trio.runtime.blob_api import BlobApi
from stepflow_trio.runtime.stores import MemoryBlobStore
from stepflow_trio.transports.http.hosting import open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.worker.blob_client import open_blob_clients

STRANGER, LOCAL = "203.0.113.5", "127.0.0.1"


def naming(url: str, id_: int = 1) -> dict[str, Any]:
    capabilities = {"blobApiUrl": url, "blobThreshold": 1}
    params = {"runtimeProtocolVersion": 1, "capabilities": capabilities}
    return {"jsonrpc": "2.0", "id": id_, "method": "initialize", "params": params}


class Office:
    """A worker with a component that waits, and a server of blobs which only this machine may reach."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.started = trio.Event()
        self.release = trio.Event()

        @self.worker.component
        async def slow(text: str) -> dict[str, str]:
            self.started.set()
            await self.release.wait()
            return {"x": text * 50}

        @self.worker.component
        async def quick() -> dict[str, str]:
            return {"x": "quick" * 50}


async def test_a_stranger_who_names_a_url_of_this_machine_gains_nothing_by_a_local_runtime_s_requests() -> (
    None
):
    office = Office()
    store = MemoryBlobStore()
    limits = HttpServerLimits(max_body_bytes=MAX_BLOB_BYTES, drain_s=0.1)
    with trio.fail_after(30):
        async with (
            open_http_host(BlobApi(store), limits=limits) as blobs,
            open_blob_clients() as blob_clients,
            trio.open_nursery() as nursery,
        ):
            app = office.worker.http_endpoint(blob_clients=blob_clients)
            assert (await post(app, naming(f"{blobs.url}/api/v1/blobs"), client=STRANGER))[0] == 200
            answers: list[Any] = []

            async def ask_as_a_stranger() -> None:
                answers.append(await post(app, execute("/slow", text="secret"), client=STRANGER))

            nursery.start_soon(ask_as_a_stranger)
            await office.started.wait()
            status, answer = await post(app, execute("/quick"), client=LOCAL)
            # What a stranger named is a stranger's, whoever calls: the field is sent as it is.
            assert (status, answer["result"]["output"]) == (200, {"x": "quick" * 50})
            office.release.set()
        [(status, answer)] = answers
        assert (status, answer["result"]["output"]) == (200, {"x": "secret" * 50})
    assert store._blobs == {}


async def test_a_local_runtime_keeps_its_rights_whoever_calls_meanwhile() -> None:
    office = Office()
    store = MemoryBlobStore()
    limits = HttpServerLimits(max_body_bytes=MAX_BLOB_BYTES, drain_s=0.1)
    with trio.fail_after(30):
        async with (
            open_http_host(BlobApi(store), limits=limits) as blobs,
            open_blob_clients() as blob_clients,
            trio.open_nursery() as nursery,
        ):
            app = office.worker.http_endpoint(blob_clients=blob_clients)
            assert (await post(app, naming(f"{blobs.url}/api/v1/blobs"), client=LOCAL))[0] == 200
            answers: list[Any] = []

            async def ask() -> None:
                # From another of its addresses: what was agreed on holds for all that say no more.
                answers.append(await post(app, execute("/slow", text="field"), client="::1"))

            nursery.start_soon(ask)
            await office.started.wait()
            assert (await post(app, execute("/quick"), client=STRANGER, headers=EXTENSIONS))[0] == 200
            refused = await post(app, naming("no url"), client=STRANGER)
            assert refused[1]["error"]["code"] == -32602
            office.release.set()
        [(_, answer)] = answers
        assert answer["result"]["output"]["x"]["$blob"]
