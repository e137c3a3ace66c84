"""A worker as its HTTP endpoint sees it: which session a request belongs to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol import codec, dialects
from stepflow_trio.protocol.dialects import Hello
from stepflow_trio.worker.session import Agreement, Session

MAX_KNOWN_RUNTIMES = 256
"""Runtimes that are told apart by what they say of themselves; the one not heard of for longest is forgotten,
which costs it nothing: it says it again."""


class HttpService:
    """Serves several runtimes at once, each of which may be initialized again at any time.

    A runtime that repeats its capabilities with every request has a session of its own. Those that do not
    share what was agreed on, in which the last ``initialize`` counts: a runtime may have several addresses,
    and nothing else tells them apart.

    Args:
        new_session: makes the session of a runtime, given what is known of it and the address it calls from.
    """

    def __init__(self, new_session: Callable[[Hello | None, str | None], Session]) -> None:
        self._new_session = new_session
        self._with_anybody = Agreement()
        self._known: OrderedDict[tuple[bytes | None, str | None], Session] = OrderedDict()

    def served(self, capabilities: bytes | None, client: str | None) -> Session:
        """The session of the runtime that sends a request.

        Raises:
            RpcError: −32602, its capabilities are not what a runtime says.
        """
        key = capabilities, client
        session = self._known.get(key)
        if session is None:
            if capabilities is None:
                session = self._new_session(None, client)
                session.agreement = self._with_anybody
            else:
                session = self._new_session(_read(capabilities), client)
            self._known[key] = session
            if len(self._known) > MAX_KNOWN_RUNTIMES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return session

    def new_session(self, client: str | None) -> Session:
        """A session that begins with ``initialize``."""
        return self._new_session(None, client)


def _read(capabilities: bytes) -> Hello:
    try:
        said = codec.decode_json(capabilities)
    except ValueError as exc:
        message = f"Stepflow-Capabilities is not JSON: {exc}"
        raise RpcError(ErrorCode.INVALID_PARAMS, message) from exc
    return dialects.read_capabilities(said)
