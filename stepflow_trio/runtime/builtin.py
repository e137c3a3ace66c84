"""The components that the runtime itself offers."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import trio

from stepflow_trio.errors import ErrorCode, FlowInvalid, RpcError, is_component_code
from stepflow_trio.flows.model import Flow, flow_id
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import FlowError, Success
from stepflow_trio.flows.source import read_source
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.flows.value_bounds import excess_of
from stepflow_trio.protocol.methods import split_validation_error
from stepflow_trio.protocol.payloads import ComponentInfo, Observability
from stepflow_trio.runtime.builtin_payloads import (
    CreateMessagesInput,
    CreateMessagesOutput,
    EvalInput,
    EvalOutput,
    GetBlobInput,
    GetBlobOutput,
    IterateInput,
    IterateOutput,
    LoadFileInput,
    LoadFileOutput,
    MapInput,
    MapOutput,
    OpenAiInput,
    OpenAiOutput,
    PutBlobInput,
    PutBlobOutput,
)
from stepflow_trio.runtime.callbacks import load_blob, load_flow, store_blob
from stepflow_trio.runtime.plugins import FailureKind, StepFailure
from stepflow_trio.runtime.runs import Run, Runs, outcome_of
from stepflow_trio.runtime.stores import BlobStore

if TYPE_CHECKING:
    from stepflow_trio.runtime.openai_chat import OpenAiChat

MAX_FILE_BYTES = 64 * 2**20
"""Largest file that ``/load_file`` reads: what fits into one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Component:
    """One of the runtime's own components."""

    takes: type[Any]
    returns: type[Any]
    execute: Callable[[Any, Run | None], Awaitable[Any]]
    description: str


class BuiltinPlugin:
    """Executes the runtime's own components.

    Their failures are not retried as transport errors: trying again would not help, and a run below one of
    them has had that budget already. ``/openai`` asks somebody else, so its are, where the API was out of
    reach, at its limit or broken.
    """

    def __init__(self, store: BlobStore, runs: Runs) -> None:
        self._store = store
        self._runs = runs
        self._chat: OpenAiChat | None = None
        self._components = {
            "/openai": _Component(
                takes=OpenAiInput,
                returns=OpenAiOutput,
                execute=self._openai,
                description="Ask OpenAI's API, or one that is like it, to go on with a chat.",
            ),
            "/create_messages": _Component(
                takes=CreateMessagesInput,
                returns=CreateMessagesOutput,
                execute=_create_messages,
                description="Build the messages of a chat.",
            ),
            "/put_blob": _Component(
                takes=PutBlobInput,
                returns=PutBlobOutput,
                execute=self._put_blob,
                description="Store data as a blob.",
            ),
            "/get_blob": _Component(
                takes=GetBlobInput,
                returns=GetBlobOutput,
                execute=self._get_blob,
                description="Read a blob.",
            ),
            "/load_file": _Component(
                takes=LoadFileInput,
                returns=LoadFileOutput,
                execute=_load_file,
                description="Read a file of the runtime's machine.",
            ),
            "/eval": _Component(
                takes=EvalInput,
                returns=EvalOutput,
                execute=self._eval,
                description="Run a stored flow.",
            ),
            "/map": _Component(
                takes=MapInput,
                returns=MapOutput,
                execute=self._map,
                description="Run a flow for each item of a list.",
            ),
            "/iterate": _Component(
                takes=IterateInput,
                returns=IterateOutput,
                execute=self._iterate,
                description="Run a flow until it returns a result.",
            ),
        }

    async def list_components(self) -> list[ComponentInfo]:
        """What there is; see :meth:`Plugin.list_components`."""
        await trio.lowlevel.checkpoint()
        return [
            ComponentInfo(
                component=path,
                description=component.description,
                input_schema=_schema_of(component.takes),
                output_schema=_schema_of(component.returns),
            )
            for path, component in self._components.items()
        ]

    async def execute(
        self,
        component: str,
        input: Any,
        *,
        attempt: int,
        observability: Observability,
        deadline: float,
    ) -> Any:
        """Execute a component; see :meth:`Plugin.execute`."""
        await trio.lowlevel.checkpoint()
        try:
            known = self._components.get(component)
            if known is None:
                hint = did_you_mean(component, self._components)
                message = f"there is no builtin component {component}{f'; {hint}' if hint else ''}"
                raise RpcError(ErrorCode.COMPONENT_NOT_FOUND, message)
            try:
                read = msgspec.convert(input, known.takes)
            except msgspec.ValidationError as exc:
                problem, path = split_validation_error(exc)
                message = f"input does not fit {component}: {problem} at {path}"
                raise RpcError(ErrorCode.BAD_REQUEST, message, {"path": path}) from exc
            return await known.execute(read, self._runs.active(observability.run_id))
        except RpcError as exc:
            kind = FailureKind.COMPONENT if is_component_code(exc.code) else FailureKind.FINAL
            raise StepFailure(FlowError(exc.code, exc.message, exc.data), kind) from exc

    async def _put_blob(self, input: PutBlobInput, _run: Run | None) -> Any:
        return {"blob_id": await store_blob(self._store, input.data, input.blob_type)}

    async def _get_blob(self, input: GetBlobInput, _run: Run | None) -> Any:
        data, _ = await load_blob(self._store, input.blob_id)
        return {"data": data}

    async def _openai(self, input: OpenAiInput, _run: Run | None) -> Any:
        if self._chat is None:
            from stepflow_trio.runtime.openai_chat import OpenAiChat  # here: h11 is loaded where it is needed

            self._chat = OpenAiChat()
        return {"response": await self._chat.complete(input)}

    async def _eval(self, input: EvalInput, parent: Run | None) -> Any:
        flow, known_id = await load_flow(self._store, input.flow_id)
        run = await self._run_to_end(flow, known_id, [input.input], parent)
        return {"result": outcome_of(run).to_json(), "run_id": run.id}

    async def _map(self, input: MapInput, parent: Run | None) -> Any:
        flow = _inline_flow(input.workflow, "workflow")
        if input.max_concurrency is not None and input.max_concurrency < 1:
            raise RpcError(ErrorCode.BAD_REQUEST, "max_concurrency must be at least 1")
        run = await self._run_to_end(flow, flow_id(flow), input.items, parent, input.max_concurrency)
        results = [outcome_of(run, index) for index in range(len(input.items))]
        successful = sum(isinstance(result, Success) for result in results)
        return {
            "results": [result.to_json() for result in results],
            "successful": successful,
            "failed": len(results) - successful,
        }

    async def _iterate(self, input: IterateInput, parent: Run | None) -> Any:
        flow = _inline_flow(input.flow, "flow")
        id_ = flow_id(flow)
        value = input.initial_input
        for iteration in range(1, input.max_iterations + 1):
            result = outcome_of(await self._run_to_end(flow, id_, [value], parent))
            if not isinstance(result, Success):
                error = result.error
                raise RpcError(error.code, error.message, error.data)
            match result.result:
                case {"result": final}:
                    return {"result": final, "iterations": iteration, "terminated": False}
                case {"next": value}:
                    pass
                case _:
                    message = f'iteration {iteration} returned neither "result" nor "next"'
                    raise RpcError(ErrorCode.BAD_REQUEST, message)
        return {"result": value, "iterations": input.max_iterations, "terminated": True}

    async def _run_to_end(
        self,
        flow: Flow,
        id_: str,
        inputs: Sequence[Any],
        parent: Run | None,
        max_concurrency: int | None = None,
    ) -> Run:
        if (excess := excess_of(inputs)) is not None:
            raise RpcError(ErrorCode.BAD_REQUEST, f"this cannot be the input of a run: {excess}")
        run = await self._runs.submit(
            flow,
            id_,
            inputs,
            variables=parent.variables if parent is not None else {},
            max_concurrency=max_concurrency,
            parent=parent,
            deadline=parent.deadline if parent is not None else math.inf,
        )
        await run.wait_as_owner()
        return run


def _schema_of(type_: type[Any]) -> dict[str, Any]:
    """A type's JSON Schema in one piece. None of the types here contains itself."""
    schema = msgspec.json.schema(type_)
    definitions = schema.pop("$defs")

    def inline(part: Any) -> Any:
        if isinstance(part, list):
            return [inline(item) for item in cast("list[Any]", part)]
        if not isinstance(part, dict):
            return part
        fields = cast("dict[str, Any]", part)
        if "$ref" in fields:
            return inline(definitions[fields["$ref"].removeprefix("#/$defs/")])
        # Titles and descriptions are those of our classes; a discriminator refers to definitions.
        return {
            key: inline(value)
            for key, value in fields.items()
            if not (key == "discriminator" or (key in ("title", "description") and isinstance(value, str)))
        }

    return inline(schema)


def _inline_flow(value: dict[str, Any], field: str) -> Flow:
    try:
        return flow_from_json(value, name=f"<{field}>")
    except FlowInvalid as exc:
        raise RpcError(
            ErrorCode.BAD_REQUEST, f"{field} cannot be run: {exc}", {"path": f"$.{field}"}
        ) from exc


async def _create_messages(input: CreateMessagesInput, _run: Run | None) -> Any:
    messages = [{"role": "user", "content": input.user_prompt}]
    if input.system_instructions is not None:
        messages.insert(0, {"role": "system", "content": input.system_instructions})
    return {"messages": messages}


async def _load_file(input: LoadFileInput, _run: Run | None) -> Any:
    path = Path(input.path)
    by_ending = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}.get(path.suffix.lower(), "text")
    format_ = input.format or by_ending
    if format_ not in ("json", "yaml", "text"):
        raise RpcError(ErrorCode.BAD_REQUEST, f"format must be json, yaml or text, not {format_[:40]!r}")

    def load() -> Any:
        # Not blocking, for opening a pipe would wait for somebody to write to it.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("it is not a regular file")
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise RpcError(ErrorCode.BAD_REQUEST, f"{input.path} is larger than {MAX_FILE_BYTES} bytes")
        text = content.decode()
        data: Any = text if format_ == "text" else _parse(text, input.path, format_, by_ending)
        metadata = {"resolved_path": str(path.resolve()), "size_bytes": len(content), "format": format_}
        return {"data": data, "metadata": metadata}

    try:
        # All of it: parsing half a megabyte of YAML takes seconds.
        return await trio.to_thread.run_sync(load, abandon_on_cancel=True)
    except (OSError, ValueError, FlowInvalid) as exc:
        raise RpcError(ErrorCode.BAD_REQUEST, f"cannot read {input.path}: {exc}") from exc


def _parse(text: str, path: str, format_: str, by_ending: str) -> Any:
    # The source's name decides how it is read.
    source = read_source(text, name=path if format_ == by_ending else f"{path}.{format_}")
    if source.diagnostics:
        raise FlowInvalid(source.diagnostics)
    return source.value
