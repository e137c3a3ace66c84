"""The components of ours.py over HTTP, and one that calls back; the argument is the host: h11, hypercorn."""

import sys

from ours import worker

from stepflow_trio import Context


@worker.component("/ask")
async def ask(run: str, context: Context) -> dict[str, str | int]:
    status = await context.get_run(run)
    return {"run": status.run_id, "completed": status.items.completed}


if __name__ == "__main__":
    worker.run_http(host="127.0.0.1", port=0, http_host=sys.argv[1])
