"""What the public releases' OpenAPI document says of the answers that a client of theirs reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import trio
from rest_stage import Reply, open_client
from runtime_stage import one_step

from stepflow_trio import ComponentError

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "peers" / "schemas" / "openapi-0.11.1.json"

pytestmark = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published schemas are not here")


class Published:
    """Their document."""

    def __init__(self) -> None:
        self.document = json.loads(PUBLISHED.read_text(encoding="utf-8"))
        self.checked: set[tuple[str, str]] = set()

    def check(self, method: str, path: str, reply: Reply) -> Any:
        """The answer, which is what the document says where it describes that."""
        bare = path.partition("?")[0]
        for known, operations in self.document["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), bare) and method.lower() in operations:
                break
        else:
            raise AssertionError(f"{method} {path} is not described")
        described = operations[method.lower()]["responses"][str(reply.status)]
        content = described.get("content")
        if content is not None:
            schema = {**content["application/json"]["schema"], "components": self.document["components"]}
            jsonschema_rs.validator_for(schema).validate(reply.json)
        self.checked.add((method, known))
        return reply.json if reply.body else None


async def test_every_answer_has_the_shape_that_the_public_releases_describe(autojump_clock: Any) -> None:
    published = Published()
    async with open_client() as client:

        async def call(method: str, path: str, body: Any = None) -> Any:
            return published.check(method, path, await client.call(method, path, body))

        @client.stage.component
        async def fails() -> None:
            raise ComponentError("no", code=-32110)

        await call("GET", "/health")
        for flow in (
            one_step("/w/echo", {"value": {"$input": "$"}}),
            one_step("/w/fails", {}, onError={"action": "retry", "maxRetries": 2}),
            one_step("/w/sleep", {"seconds": 10}),
        ):
            flow_id = (await call("POST", "/flows", {"flow": flow}))["flowId"]
            await call("GET", f"/flows/{flow_id}")
            await call("GET", f"/flows/{flow_id}/variables")
            run = await call("POST", "/runs", {"flowId": flow_id, "input": [1, 2]})
            path = f"/runs/{run['runId']}"
            for seconds in (0.5, 1, 1, 100):
                await trio.sleep(seconds)
                for part in (
                    "",
                    "/items",
                    "/flow",
                    "/steps",
                    "/steps?itemIndex=1",
                    "?wait=true&timeoutSecs=1",
                ):
                    await call("GET", path + part)
            await call("POST", "/runs", {"flowId": flow_id, "input": [1, 2], "wait": True})
            await call("POST", "/runs", {"flowId": flow_id, "input": [], "wait": True})
            cancelled = await call("POST", "/runs", {"flowId": flow_id, "input": [1]})
            await call("POST", f"/runs/{cancelled['runId']}/cancel")
            await call("GET", f"/runs/{cancelled['runId']}")
            await call("GET", "/runs?limit=2")
            await call("POST", f"{path}/cancel")
            await call("DELETE", path)
            await call("GET", path)
            await call("DELETE", f"/flows/{flow_id}")
            await call("GET", f"/flows/{flow_id}")
        blob_id = (await call("POST", "/blobs", {"data": {"a": 1}, "blobType": "data"}))["blobId"]
        await call("GET", f"/blobs/{blob_id}")
    described = {(method.upper(), path) for path, of in published.document["paths"].items() for method in of}
    # Ours names a component by the path that a flow's step has for it.
    assert described - published.checked == {("GET", "/components")}
