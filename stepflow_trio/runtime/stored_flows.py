"""The flows that a runtime keeps, by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepflow_trio.errors import BlobNotFound, FlowNotFound, RpcError, StateConflict
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import examine_flow_json
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime.callbacks import load_blob, load_flow
from stepflow_trio.runtime.large_flows import beside_the_loop
from stepflow_trio.runtime.recent_flows import RecentFlows
from stepflow_trio.runtime.runs import Runs
from stepflow_trio.runtime.stores import BlobStore


class StoredFlows:
    """Flows by their ids; :attr:`Runtime.flows`."""

    def __init__(self, store: BlobStore, runs: Runs) -> None:
        self._store = store
        self._runs = runs
        self._ids: RecentFlows[int, str] = RecentFlows()
        """Of flows that were stored, by their identity."""
        self._read: RecentFlows[str, Flow] = RecentFlows()
        """Flows as they are run, by their ids."""

    async def put(self, flow: Flow) -> str:
        """Store a flow and return its id."""
        known = self._ids.get(id(flow))
        if known is not None and await self._has(known):
            return known
        content = await beside_the_loop(flow, lambda: blobs.blob_content(flow.to_json(), blobs.FLOW))
        stored = await self._store.put(content, blobs.FLOW)
        self._ids.put(id(flow), flow, stored)
        return stored

    async def _has(self, id_: str) -> bool:
        try:
            await self._store.get(id_)
        except BlobNotFound:
            return False
        return True

    async def get_to_run(self, id_: str, overrides: Mapping[str, Any] | None = None) -> tuple[Flow, str]:
        """Read a flow that is to be run; return it, overrides applied, and its id.

        Raises:
            FlowNotFound: there is none, or what is stored under this id is no flow.
            RpcError: −32202, what is stored is not what the id stands for; −32004, it cannot be run, or the
                overrides do not fit it.
        """
        bare = blobs.normalize_blob_id(id_) or ""
        known = self._read.get(bare) if overrides is None else None
        if known is not None and await self._has(bare):
            return known, bare
        await self.get(id_)
        flow, bare = await load_flow(self._store, id_, overrides)
        if overrides is None:
            self._read.put(bare, flow, flow)
        return flow, bare

    async def get(self, id_: str) -> Flow:
        """Read a flow. It may have errors, with which it cannot be run.

        Raises:
            FlowNotFound: there is none, or what is stored under this id is no flow.
            RpcError: −32202, what is stored is not what the id stands for.
        """
        data: Any = None
        if blobs.normalize_blob_id(id_) is not None:
            try:
                data, _ = await load_blob(self._store, id_)
            except RpcError as exc:
                if not isinstance(exc.__cause__, BlobNotFound):
                    raise
        flow = None
        if isinstance(data, dict):
            flow = (await beside_the_loop(data, lambda: examine_flow_json(data))).flow
        if flow is None:
            raise FlowNotFound(id_[:80])
        return flow

    async def list_ids(self, *, limit: int, offset: int = 0) -> tuple[list[str], int]:
        """The ids of a page of the flows, the latest first, and how many flows there are."""
        return await self._store.list_ids(blobs.FLOW, limit=limit, offset=offset)

    async def delete(self, id_: str) -> None:
        """Remove a flow. Runs of it that are over stay.

        Raises:
            FlowNotFound: there is none.
            StateConflict: a run of it is at work.
        """
        await self.get(id_)
        bare = blobs.normalize_blob_id(id_) or id_
        if self._runs.is_flow_at_work(bare):
            raise self._at_work(bare)
        try:
            stored = await self._store.get(bare)
        except BlobNotFound:
            raise FlowNotFound(bare) from None
        if stored.blob_type != blobs.FLOW:
            # Stored as data, of which somebody else may hold the id.
            raise FlowNotFound(bare)
        if not await self._store.delete(bare):
            raise FlowNotFound(bare)
        if self._runs.is_flow_at_work(bare):
            # Submitted while it was being removed: a run that is at work has its flow.
            await self._store.put(stored.content, stored.blob_type, stored.filename)
            raise self._at_work(bare)

    def _at_work(self, id_: str) -> StateConflict:
        return StateConflict(f"a run of flow {id_} is at work: cancel it, or wait until it is over")
