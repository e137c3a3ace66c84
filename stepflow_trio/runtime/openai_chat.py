"""The next message of a chat, from OpenAI's API or one that is like it."""

from __future__ import annotations

import logging
import os
import ssl
import time
from typing import Any, cast

from stepflow_trio.errors import CallTimeout, ConfigError, ConnectionLost, ErrorCode
from stepflow_trio.flows.results import FlowError
from stepflow_trio.protocol import codec
from stepflow_trio.runtime.builtin_payloads import OpenAiInput
from stepflow_trio.runtime.plugin_config import is_this_machine
from stepflow_trio.runtime.plugins import FailureKind, StepFailure
from stepflow_trio.transports.http.bearer import SecretStr
from stepflow_trio.transports.http.client import HttpResponse, open_http_client
from stepflow_trio.transports.http.retry_after import retry_after_s
from stepflow_trio.transports.http.security import client_ssl_context
from stepflow_trio.transports.http.urls import HttpUrl

__all__ = ["OpenAiChat"]

BASE_URL = "https://api.openai.com/v1"
"""Where the API is, unless the environment's ``OPENAI_BASE_URL`` says otherwise."""

DEFAULT_MODEL = "gpt-3.5-turbo"
"""What the public releases ask for, always."""

ANSWER_TIMEOUT_S = 600.0
"""A long answer of a slow model takes minutes."""

_MAX_ANSWER_BYTES = 16 * 2**20
_MAX_SAID_CHARS = 1000
_UNAUTHORIZED = (401, 403)
_AT_ITS_LIMIT = (429, 503)
_TEMPORARY = (408, 425, 429)
_NO_QUOTA = "insufficient_quota"
"""It comes with 429, but does not pass by itself."""

_log = logging.getLogger("stepflow_trio.runtime")


class OpenAiChat:
    """The way to the API.

    Where it is, and the key, are looked up with every message, in the environment of this process: also
    where the configuration was read with other variables.
    """

    def __init__(self) -> None:
        self._tls: ssl.SSLContext | None = None
        self._warned_of: set[str] = set()

    async def complete(self, input: OpenAiInput) -> str:
        """Ask for the next message, and return its text.

        The key is the input's, else the environment's ``OPENAI_API_KEY``; no error shows it. A key that
        travels unencrypted to another machine is warned of, once for each.

        Raises:
            StepFailure: there is no key, or no answer with a text. The runtime tries again (``TRANSPORT``)
                where the API could not be reached, was at its limit or broken; nobody does where it refused.
        """
        key = input.api_key or os.environ.get("OPENAI_API_KEY") or ""
        if not key:
            message = (
                "/openai needs a key: set OPENAI_API_KEY in the runtime's environment, or give it api_key"
            )
            raise _failure(ErrorCode.CONFIGURATION_ERROR, message)
        try:
            return await self._ask(input, key)
        except ConfigError as exc:
            raise _failure(ErrorCode.CONFIGURATION_ERROR, f"/openai cannot be used: {exc}") from exc
        except (ConnectionLost, CallTimeout) as exc:
            is_lost = isinstance(exc, ConnectionLost)
            code = ErrorCode.CONNECTION_LOST if is_lost else ErrorCode.TRANSPORT_ERROR
            raise _failure(code, f"/openai: {exc}", FailureKind.TRANSPORT) from exc

    async def _ask(self, input: OpenAiInput, key: str) -> str:
        url = HttpUrl.parse(os.environ.get("OPENAI_BASE_URL") or BASE_URL)
        asked: dict[str, Any] = {
            "model": input.model or DEFAULT_MODEL,
            "messages": [{"role": message.role, "content": message.content} for message in input.messages],
        }
        if input.max_tokens is not None:
            asked["max_tokens"] = input.max_tokens
        if input.temperature is not None:
            asked["temperature"] = input.temperature
        headers = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
        async with (
            open_http_client(url, tls=self._tls_for(url), bearer=SecretStr(key)) as client,
            client.request(
                "POST",
                f"{url.path.rstrip('/')}/chat/completions",
                headers=headers,
                body=codec.encode_json(asked),
                timeout_s=ANSWER_TIMEOUT_S,
            ) as response,
        ):
            body = await response.read(_MAX_ANSWER_BYTES)
            if response.status != 200:
                raise _refusal(response, body, key)
            return _text_of(body)

    def _tls_for(self, url: HttpUrl) -> ssl.SSLContext | None:
        if url.is_tls:
            # Made once: reading the system's authorities takes tens of milliseconds.
            self._tls = self._tls or client_ssl_context()
            return self._tls
        if not is_this_machine(url.host) and url.origin not in self._warned_of:
            self._warned_of.add(url.origin)
            _log.warning("OPENAI_BASE_URL: the key travels unencrypted to %s: use https://", url.host)
        return None


def _text_of(body: bytes) -> str:
    try:
        answer = codec.decode_json(body)
    except ValueError as exc:
        message = f"/openai: the answer is not JSON: {exc}"
        raise _failure(ErrorCode.GARBLED_MESSAGE, message, FailureKind.TRANSPORT) from exc
    match answer:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {"refusal": str(refusal)}}, *_]}:
            message = f"the model refused: {_printable(refusal)}"
        case {"choices": [{"finish_reason": str(reason)}, *_]}:
            message = f"the answer has no text; it ended because of {_printable(reason)!r}"
        case _:
            message = "/openai: the answer has no choices with a message"
            raise _failure(ErrorCode.GARBLED_MESSAGE, message, FailureKind.TRANSPORT)
    raise _failure(ErrorCode.COMPONENT_FAILED, message, FailureKind.COMPONENT)


def _refusal(response: HttpResponse, body: bytes, key: str) -> StepFailure:
    """An answer other than 200, in the API's own words."""
    status = response.status
    error = _error_in(body)
    said = error.get("message")
    # Servers show what they were sent.
    text = _printable(said.replace(key, "…")) if isinstance(said, str) else ""
    message = f"/openai: HTTP {status}{': ' if text else ''}{text}"
    data: dict[str, Any] = {"status": status}
    for name in ("type", "code", "param"):
        if isinstance(value := error.get(name), str):
            data[name] = _printable(value.replace(key, "…"))
    has_no_quota = _NO_QUOTA in (error.get("code"), error.get("type"))
    if (status >= 500 or status in _TEMPORARY) and not has_no_quota:
        code = ErrorCode.OVERLOADED if status in _AT_ITS_LIMIT else ErrorCode.TRANSPORT_ERROR
        wanted_s = retry_after_s(response.headers, now=time.time()) or 0.0
        if wanted_s > 0:
            data["retry_after_s"] = wanted_s
        return _failure(code, message, FailureKind.TRANSPORT, data, wanted_s)
    if status in _UNAUTHORIZED:
        return _failure(ErrorCode.CONFIGURATION_ERROR, message, data=data)
    return _failure(ErrorCode.BAD_REQUEST, message, data=data)


def _error_in(body: bytes) -> dict[str, Any]:
    try:
        answer = codec.decode_json(body)
    except ValueError:
        return {"message": body[: 4 * _MAX_SAID_CHARS].decode("utf-8", "replace").strip()}
    error: object = cast("dict[str, Any]", answer).get("error") if isinstance(answer, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return cast("dict[str, Any]", error) if isinstance(error, dict) else {}


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:_MAX_SAID_CHARS]


def _failure(
    code: ErrorCode,
    message: str,
    kind: FailureKind = FailureKind.FINAL,
    data: Any = None,
    retry_after_s: float = 0.0,
) -> StepFailure:
    return StepFailure(FlowError(code, message, data), kind, retry_after_s=retry_after_s)
