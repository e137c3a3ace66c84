"""The component /openai, against a server of our own that is like OpenAI's."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from runtime_stage import Seen, failure_of, flow, retrying, running, step

from stepflow_trio import ErrorCode
from stepflow_trio.errors import ConnectFailed
from stepflow_trio.runtime import openai_chat
from stepflow_trio.runtime.builtin_payloads import OpenAiInput
from stepflow_trio.runtime.events import StepRetrying, StepStarted
from stepflow_trio.runtime.openai_chat import OpenAiChat
from stepflow_trio.runtime.plugins import StepFailure
from stepflow_trio.runtime.retries import Constant
from stepflow_trio.transports.http.hosting import open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits

KEY = "sk-secret-0123456789"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
AT_ONCE = retrying(3, backoff=Constant(delay_s=0.0))


def asking(**more: Any) -> dict[str, Any]:
    given = {"$literal": {**CHAT, **more}}
    return flow(step("ask", "/builtin/openai", given, onError={"action": "retry", "maxRetries": 2}))


def saying(content: Any, **more: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": content, **more}, "finish_reason": "stop"}]
    }


class Api:
    """Answers every request with the next of its answers, the last of them again and again."""

    def __init__(self, *answers: tuple[int, Any] | tuple[int, Any, dict[str, str]]) -> None:
        self._answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((f"{scope['method']} {scope['path']}", headers, json.loads(body)))
        status, answer, *given = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        sent = [(name.encode(), value.encode()) for name, value in (given[0] if given else {}).items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def serving(api: Api, monkeypatch: pytest.MonkeyPatch, path: str = "/v1") -> AsyncGenerator[None]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with open_http_host(cast("Any", api), limits=HttpServerLimits(drain_s=0)) as host:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{host.url.rstrip('/')}{path}")
        yield


@pytest.mark.parametrize("path", ["/v1", "/v1/", "", "/a/b"])
async def test_the_next_message_is_asked_for(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    api = Api((200, saying("hello ä")))
    async with serving(api, monkeypatch, path), running(AT_ONCE) as runtime:
        assert await runtime.run(asking()) == {"response": "hello ä"}
    [(target, headers, asked)] = api.requests
    assert target == f"POST {path.rstrip('/')}/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert asked == {"model": "gpt-3.5-turbo", **CHAT}


async def test_whatever_is_given_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api((200, saying("ok")))
    async with serving(api, monkeypatch), running(AT_ONCE) as runtime:
        await runtime.run(asking(max_tokens=5, temperature=0, model="gpt-x", api_key="sk-of-the-flow-1234"))
    [(_, headers, asked)] = api.requests
    assert asked == {"model": "gpt-x", **CHAT, "max_tokens": 5, "temperature": 0}
    assert headers["authorization"] == "Bearer sk-of-the-flow-1234"


# ---- what fails for good --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, ""])
async def test_without_a_key_nothing_is_asked(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    seen = Seen()
    async with running(AT_ONCE, on_event=seen) as runtime:
        failure = await failure_of(runtime, asking(api_key=key))
    assert failure.code == ErrorCode.CONFIGURATION_ERROR
    assert "set OPENAI_API_KEY" in failure.message
    assert len(seen.of(StepStarted)) == 1


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, ErrorCode.BAD_REQUEST, {"message": "no such model", "type": "invalid_request_error"}),
        (401, ErrorCode.CONFIGURATION_ERROR, {"message": "Incorrect API key", "code": "invalid_api_key"}),
        (403, ErrorCode.CONFIGURATION_ERROR, {"message": "not in this country"}),
        (404, ErrorCode.BAD_REQUEST, {"message": "nothing here"}),
        (429, ErrorCode.BAD_REQUEST, {"message": "no quota", "code": "insufficient_quota"}),
        (301, ErrorCode.BAD_REQUEST, {"message": "moved"}),
    ],
)
async def test_a_refusal_is_final_and_says_what_the_api_said(
    monkeypatch: pytest.MonkeyPatch, status: int, code: int, error: dict[str, str]
) -> None:
    api = Api((status, {"error": error}))
    async with serving(api, monkeypatch), running(AT_ONCE) as runtime:
        failure = await failure_of(runtime, asking())
    message = error.pop("message")
    assert (failure.code, failure.message) == (code, f"/openai: HTTP {status}: {message}")
    assert failure.data == {"status": status, **error}
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (saying(None, refusal="I will not"), "the model refused: I will not"),
        (saying(None), "the answer has no text; it ended because of 'stop'"),
    ],
)
async def test_an_answer_without_a_text_is_a_failure_that_a_step_may_retry(
    monkeypatch: pytest.MonkeyPatch, answer: Any, says: str
) -> None:
    api = Api((200, answer), (200, answer), (200, answer), (200, saying("now")))
    async with serving(api, monkeypatch), running(AT_ONCE) as runtime:
        failure = await failure_of(runtime, asking())
    assert (failure.code, failure.message) == (ErrorCode.COMPONENT_FAILED, says)
    assert len(api.requests) == 3


# ---- what may pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, ErrorCode.OVERLOADED),
        (503, ErrorCode.OVERLOADED),
        (500, ErrorCode.TRANSPORT_ERROR),
        (408, ErrorCode.TRANSPORT_ERROR),
    ],
)
async def test_what_may_pass_is_retried_as_trouble_of_the_transport(
    monkeypatch: pytest.MonkeyPatch, status: int, code: int
) -> None:
    api = Api((status, {"error": {"message": "later"}}), (200, saying("now")))
    seen = Seen()
    async with serving(api, monkeypatch), running(AT_ONCE, on_event=seen) as runtime:
        assert await runtime.run(asking()) == {"response": "now"}
    [retrying_] = seen.of(StepRetrying)
    assert (retrying_.error.code, retrying_.error.message) == (code, f"/openai: HTTP {status}: later")


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "50"}, 0.05),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, 0),
        ({}, 0),
    ],
)
async def test_the_time_that_the_api_asks_for_is_waited(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], delay_s: float
) -> None:
    api = Api((429, {"error": {"message": "slow down"}}, headers), (200, saying("now")))
    seen = Seen()
    async with serving(api, monkeypatch), running(AT_ONCE, on_event=seen) as runtime:
        await runtime.run(asking())
    [event] = seen.of(StepRetrying)
    assert event.delay_s == delay_s
    assert event.error.data == {"status": 429, **({"retry_after_s": delay_s} if delay_s else {})}


@pytest.mark.parametrize("answer", [b"<html>", b"[1", {}, {"choices": []}, [1]])
async def test_an_answer_that_is_none_is_trouble_of_the_transport(
    monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    api = Api((200, answer))
    async with serving(api, monkeypatch), running(AT_ONCE) as runtime:
        failure = await failure_of(runtime, asking())
    assert failure.code == ErrorCode.GARBLED_MESSAGE
    assert len(api.requests) == 4


async def test_an_api_that_cannot_be_reached_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Api((200, saying("never"))), monkeypatch):
        pass
    seen = Seen()
    async with running(AT_ONCE, on_event=seen) as runtime:
        failure = await failure_of(runtime, asking())
    assert failure.code == ErrorCode.CONNECTION_LOST
    assert "cannot connect to http://127.0.0.1:" in failure.message
    assert len(seen.of(StepStarted)) == 4


async def test_an_api_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Api):
        async def __call__(self, *_asgi: Any) -> None:
            self.requests.append(("", {}, None))
            await trio.sleep_forever()

    monkeypatch.setattr(openai_chat, "ANSWER_TIMEOUT_S", 0.2)
    api = Silent()
    async with serving(api, monkeypatch), running(retrying(0)) as runtime:
        failure = await failure_of(runtime, asking())
    assert failure.code == ErrorCode.TRANSPORT_ERROR
    assert "no answer within 0.2 s" in failure.message


# ---- the key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 401, 429])
@pytest.mark.parametrize(
    "answer", [b"you sent Bearer " + KEY.encode(), {"error": {"message": KEY, "code": KEY}}]
)
async def test_the_key_is_never_shown_even_if_the_server_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, answer: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    seen = Seen()
    api = Api((status, answer))
    async with serving(api, monkeypatch), running(AT_ONCE, on_event=seen) as runtime:
        failure = await failure_of(runtime, asking())
    assert KEY not in f"{failure!r} {failure} {failure.data} {seen!r} {caplog.text}"


async def test_a_key_that_cannot_be_one_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = "sk-with a space\r\nX-Injected: yes"
    api = Api((200, saying("never")))
    async with serving(api, monkeypatch), running(AT_ONCE) as runtime:
        failure = await failure_of(runtime, asking(api_key=key))
    assert failure.code == ErrorCode.CONFIGURATION_ERROR
    assert "with a space" not in f"{failure!r}"
    assert api.requests == []


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://openai.invalid:1/v1", True),
        ("https://openai.invalid:1/v1", False),
        ("http://127.0.0.1:1/v1", False),
        ("http://localhost:1/v1", False),
    ],
)
async def test_a_key_that_travels_unencrypted_to_another_machine_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str, warns: bool
) -> None:
    monkeypatch.setattr(openai_chat, "open_http_client", unreachable)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    chat = OpenAiChat()
    for _ in range(2):
        with pytest.raises(StepFailure, match="nobody there"):
            await chat.complete(OpenAiInput(messages=[]))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    expected = "OPENAI_BASE_URL: the key travels unencrypted to openai.invalid: use https://"
    assert warnings == ([expected] if warns else [])


async def test_the_system_s_authorities_are_read_once_and_for_one_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[None] = []
    monkeypatch.setattr(openai_chat, "client_ssl_context", lambda: made.append(None) or object())
    monkeypatch.setattr(openai_chat, "open_http_client", unreachable)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for chats in (1, 2):
        chat = OpenAiChat()
        for _ in range(2):
            with pytest.raises(StepFailure):
                await chat.complete(OpenAiInput(messages=[]))
        assert len(made) == chats


@asynccontextmanager
async def unreachable(*_where: Any, **_how: Any) -> AsyncGenerator[None]:
    await trio.lowlevel.checkpoint()
    raise ConnectFailed("https://openai.invalid", "nobody there")
    yield


def test_the_input_does_not_show_the_key() -> None:
    assert KEY not in repr(OpenAiInput(messages=[], api_key=KEY))


async def test_a_base_url_that_is_none_is_said(autojump_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "ftp://user:secret@x")
    async with running(AT_ONCE) as runtime:
        failure = await failure_of(runtime, asking())
    assert failure.code == ErrorCode.CONFIGURATION_ERROR
    assert "only http and https" in failure.message
    assert "secret" not in failure.message
