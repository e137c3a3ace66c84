"""Submissions that are repeated under one idempotency key: they lead to one run."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import trio

from stepflow_trio.errors import KeyReused
from stepflow_trio.flows.json_keys import key_of_value
from stepflow_trio.runtime.runs import DEFAULT_MAX_CONCURRENCY
from stepflow_trio.runtime.stores import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What makes two submissions the same one."""

    flow_id: str
    inputs: Sequence[Any]
    variables: Mapping[str, Any]
    overrides: Mapping[str, Any] | None = None
    max_concurrency: int | None = None

    def digest(self, key: str) -> str:
        """What is kept of it under an idempotency key, in 64 hex digits: the same for the same submission.

        The order of an object's members does not count. What was submitted cannot be read from it, though
        whoever has the key and all else of a submission can try what a short secret in it might be.
        """
        submitted = [
            self.flow_id,
            list(self.inputs),
            dict(self.variables),
            self.overrides,
            self.max_concurrency or DEFAULT_MAX_CONCURRENCY,
        ]
        return hmac.digest(key.encode(), key_of_value(submitted).encode(), "sha256").hex()


Submit: TypeAlias = Callable[[str], Awaitable[str]]
"""Starts a run with this digest of its submission, and returns its id when it is on record."""


class SubmissionsByKey:
    """Sees to it that one idempotency key starts one run."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._in_use: dict[str, trio.Event] = {}

    async def submit_once(self, key: str, digest: str, submit: Submit) -> str:
        """The id of the run that ``submit`` starts, or of the one that it started when ``key`` came before.

        Raises:
            KeyReused: that was for another submission.
        """
        while (other := self._in_use.get(key)) is not None:
            await other.wait()
        done = self._in_use[key] = trio.Event()
        try:
            known = await self._store.find_by_key(key)
            if known is None:
                return await submit(digest)
            if digest != known.submission_digest:
                raise KeyReused(key, known.run_id)
            return known.run_id
        finally:
            del self._in_use[key]
            done.set()
