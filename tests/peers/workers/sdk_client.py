"""Makes every call that the client of stepflow-py 0.11.2 has, and prints what came of each as JSON.

Runs in that release's own environment: ``sdk_client.py URL [PATH OF A COMPONENT THAT NEVER ENDS]``.
"""

import asyncio  # noqa: TID251 — the public client runs on nothing else
import json
import os
import sys

from stepflow_py import StepflowClient
from stepflow_py.api.api import BlobApi, ComponentApi, FlowApi, HealthApi, RunApi
from stepflow_py.api.exceptions import ApiException
from stepflow_py.api.models import BlobType, ExecutionStatus
from stepflow_py.api.models.create_run_request import CreateRunRequest
from stepflow_py.api.models.store_blob_request import StoreBlobRequest

FLOW = {
    "name": "public",
    "description": "of the public client",
    "schemas": {
        "type": "object",
        "properties": {
            "variables": {
                "type": "object",
                "properties": {"word": {"type": "string", "env_var": "PUBLIC_WORD", "default": "none"}},
            }
        },
    },
    "steps": [
        {
            "id": "put",
            "component": "/builtin/put_blob",
            "input": {"data": {"$input": "$"}, "blob_type": "data"},
        },
        {
            "id": "get",
            "component": "/builtin/get_blob",
            "input": {"blob_id": {"$step": "put", "path": "$.blob_id"}},
        },
    ],
    "output": {"data": {"$step": "get", "path": "$.data"}, "word": {"$variable": "word"}},
}


def plain(model):
    return json.loads(model.model_dump_json(by_alias=True, exclude_unset=True)) if model is not None else None


async def refusal(call):
    try:
        await call
    except ApiException as exc:
        body = json.loads(exc.body)
        return {"status": exc.status, "code": body["code"], "has_message": bool(body["message"])}
    return None


async def main(url, endless):
    said = {}
    async with StepflowClient.connect(url) as client:
        api = client._api_client
        runs, flows, blobs = RunApi(api), FlowApi(api), BlobApi(api)
        said["is_healthy"] = await client.is_healthy()
        said["health"] = plain(await HealthApi(api).health_check())
        listed = await ComponentApi(api).list_components()
        said["components"] = [each.component for each in listed.components]

        said["dry_run"] = plain(await client.store_flow(FLOW, dry_run=True))
        stored = await client.store_flow(FLOW)
        said["store_flow"] = plain(stored)
        flow_id = stored.flow_id
        try:
            said["get_flow"] = plain(await flows.get_flow(flow_id))
        except ValueError:  # the public server leaves out what its own client insists on
            said["get_flow"] = None
        said["get_flow_variables"] = plain(await flows.get_flow_variables(flow_id))
        fatal = {"name": "f", "description": "d", "steps": [], "output": {"$step": "nobody"}}
        said["fatal"] = plain(await client.store_flow(fatal))

        one = await client.run(flow_id, {"n": 1}, variables={"word": "given"})
        said["run"] = plain(one)
        os.environ["PUBLIC_WORD"] = "environment"
        from_env = await client.run(flow_id, {"n": 2}, populate_variables_from_env=True)
        said["run_from_env"] = plain(from_env)
        batch = await client.run(flow_id, [{"n": n} for n in range(5)], max_concurrency=2)
        said["batch"] = plain(batch)
        submitted = await client.submit(flow_id, {"n": 3})
        said["submit"] = plain(submitted)
        said["get_run"] = plain(await client.get_run(submitted.run_id, wait=True, wait_timeout=20))
        said["get_run_items"] = await client.get_run_items(batch.run_id)
        said["get_run_items"] = json.loads(
            json.dumps(
                said["get_run_items"], default=lambda o: o.to_dict() if hasattr(o, "to_dict") else str(o)
            )
        )
        overrides = {"steps": {"put": {"value": {"input": {"data": {"$literal": "patched"}}}}}}
        asked = CreateRunRequest.from_dict(
            {"flowId": flow_id, "input": [{}], "wait": True, "overrides": overrides, "timeoutSecs": 20}
        )
        patched = await runs.create_run(asked)
        said["overrides"] = plain(patched)
        said["get_patched"] = plain(await runs.get_run(patched.run_id))
        said["steps"] = plain(await runs.get_run_steps(batch.run_id))
        said["steps_of_item"] = plain(await runs.get_run_steps(batch.run_id, item_index=4))
        said["flow_of_run"] = plain(await runs.get_run_flow(batch.run_id))
        said["list_runs"] = plain(await runs.list_runs())
        said["list_page"] = plain(
            await runs.list_runs(
                status=ExecutionStatus.COMPLETED, flow_name="public", roots_only=True, limit=2, offset=1
            )
        )
        said["list_tree"] = plain(await runs.list_runs(root_run_id=one.run_id, max_depth=0))

        blob = await blobs.store_blob(StoreBlobRequest(data={"a": 1}, blobType=BlobType.DATA, filename="a"))
        said["store_blob"] = plain(blob)
        said["get_blob"] = plain(await blobs.get_blob(blob.blob_id))

        nobody = "00000000-0000-0000-0000-000000000007"
        said["refusals"] = {
            "flow": await refusal(flows.get_flow("0" * 64)),
            "run": await refusal(runs.get_run(nobody)),
            "create": await refusal(client.run("0" * 64, {})),
            "cancel": await refusal(runs.cancel_run(one.run_id)),
            "blob": await refusal(blobs.get_blob("0" * 64)),
            "item": await refusal(runs.get_run_steps(batch.run_id, item_index=99)),
        }
        if endless:
            never = {"name": "never", "description": "d", "output": {"$step": "x"}}
            never["steps"] = [{"id": "x", "component": endless, "input": {}}]
            kept = await client.submit((await client.store_flow(never)).flow_id, {})
            said["waited"] = plain(await client.get_run(kept.run_id, wait=True, wait_timeout=1))
            said["cancel_run"] = plain(await runs.cancel_run(kept.run_id))
            said["cancelled"] = plain(await client.get_run(kept.run_id))
        await runs.delete_run(one.run_id)
        said["deleted_run"] = await refusal(runs.get_run(one.run_id))
        await flows.delete_flow(flow_id)
        said["deleted_flow"] = await refusal(flows.get_flow_variables(flow_id))
    sys.stdout.write(json.dumps(said))


asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
