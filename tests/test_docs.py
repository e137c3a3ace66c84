"""The pages under docs/ say what is true: their tables, their paths, and the exchange that was recorded."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import trio

from stepflow_trio import Context, Worker, open_runtime
from stepflow_trio.engine import Link
from stepflow_trio.errors import ErrorCode, LossReason, is_component_code, is_transport_code
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.schema import message_schema

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stepflow_trio"
PAGES = sorted((ROOT / "docs").glob("*.md"))
WIRE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
HOUSE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
RECORDED = re.findall(r"^([→←]) (\{.*\})$", WIRE, re.MULTILINE)

SECTIONS = [
    "Messages and dialects",
    "Sequence",
    "stdio",
    "HTTP",
    "Error codes",
    "Blobs",
    "Retries and restarts",
    "Extensions and limits",
]


# ---- tables and references --------------------------------------------------------------------------


def test_the_table_of_error_codes_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| −(\d+) \| `(\w+)` \| (.*) \| (.*) \|$", WIRE, re.MULTILINE)
    assert [(-int(code), name) for code, name, _, _ in rows] == [
        (code.value, code.name) for code in ErrorCode
    ]
    for code, name, _, again in rows:
        is_component, is_transport = is_component_code(-int(code)), is_transport_code(-int(code))
        promised = "where the step says so" if is_component else "always" if is_transport else "never"
        assert again == promised, name


def test_an_error_code_that_nobody_says_is_not_in_the_code() -> None:
    rows = re.findall(r"^\| −\d+ \| `(\w+)` \| (.*) \| .* \|$", WIRE, re.MULTILINE)
    source = "".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py") if p.name != "errors.py")
    for name, who in rows:
        is_default = name == "COMPONENT_FAILED"  # ComponentError's own, in errors.py
        assert (who != "nobody") == (is_default or f"ErrorCode.{name}" in source), name


def test_the_table_of_disconnect_reasons_is_that_of_the_code() -> None:
    _, _, section = HOUSE.partition("## Why a connection ended")
    rows = re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert rows == [reason.value for reason in LossReason]


def test_the_sections_that_docstrings_refer_to_exist() -> None:
    assert re.findall(r"^## (\d+)\. (.*)$", WIRE, re.MULTILINE) == [
        (str(number), title) for number, title in enumerate(SECTIONS, 1)
    ]
    for path in PACKAGE.rglob("*.py"):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for page, numbers in re.findall(r"(docs/[\w/]+\.md)(?:, sections? ([\d, and]*\d))?", text):
            assert (ROOT / page).is_file(), path
            assert all(1 <= int(n) <= len(SECTIONS) for n in re.findall(r"\d+", numbers)), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`([\w.*-]+(?:/[\w.*-]+)+\.\w+)`", text)
    listed = re.findall(r"(?<![\w/])(?:tests|docs|benchmarks|stepflow_trio)/[\w/.*-]*\w\*?\.\w+", text)
    for name in {*quoted, *listed}:
        assert any([*ROOT.glob(name), *PACKAGE.glob(name)]), name
    for target in re.findall(r"\]\((?!https:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


# ---- the exchange -----------------------------------------------------------------------------------


class _TappedLink:
    """The worker's end of a link, written down as it is used."""

    def __init__(self, link: Link, lines: list[tuple[str, str]]) -> None:
        self._link = link
        self._lines = lines
        self.kind = link.kind

    async def receive(self) -> list[bytes | FrameRejected]:
        frames = await self._link.receive()
        self._lines += [("→", frame.decode()) for frame in frames if isinstance(frame, bytes)]
        return frames

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        self._lines += [("←", frame.decode()) for frame in frames]
        await self._link.send(frames, progressed)

    async def aclose(self) -> None:
        await self._link.aclose()


class _TappedWorker:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.lines: list[tuple[str, str]] = []

    async def serve(self, link: Link) -> object:
        return await self._worker.serve(_TappedLink(link, self.lines))


async def record_exchange() -> list[tuple[str, str]]:
    """Run what docs/protocol.md shows; return its messages and which way they went."""
    worker = Worker()
    has_begun = trio.Event()

    @worker.component
    async def keep(text: str, context: Context) -> str:
        """Keep a text as a blob."""
        context.progress(0.5)
        return await context.put_blob({"text": text})

    @worker.component
    async def wait(blob: str) -> None:
        """Wait to be cancelled."""
        has_begun.set()
        await trio.sleep_forever()

    flow = {
        "steps": [
            {"id": "first", "component": "/notes/keep", "input": {"text": {"$input": "$.text"}}},
            {"id": "second", "component": "/notes/wait", "input": {"blob": {"$step": "first"}}},
        ],
        "output": {"$step": "second"},
    }
    tapped = _TappedWorker(worker)
    async with open_runtime(workers={"notes": tapped}, new_id=lambda: uuid.UUID(int=7)) as runtime:
        await runtime.list_components()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run, flow, {"text": "hällo"})
            await has_begun.wait()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
    return tapped.lines


async def test_the_recorded_exchange_is_what_our_two_ends_say() -> None:
    assert await record_exchange() == RECORDED


def test_every_recorded_message_is_valid_by_our_schema() -> None:
    check = jsonschema_rs.validator_for(message_schema())
    for _, text in RECORDED:
        check.validate(json.loads(text))


def test_the_recorded_messages_come_in_the_order_that_the_page_tells() -> None:
    said: list[tuple[str, str]] = []
    asked: dict[tuple[str, Any], str] = {}
    for way, text in RECORDED:
        message = json.loads(text)
        if "method" in message:
            said.append((way, message["method"]))
            if "id" in message:
                asked[way, message["id"]] = message["method"]
        else:
            kind = str(message["error"]["code"]) if "error" in message else "result"
            answered = asked.pop(("→" if way == "←" else "←", message["id"]))
            said.append((way, f"{answered}: {kind}"))
    assert not asked, "every request was answered"
    assert said == [
        ("→", "initialize"),
        ("←", "initialize: result"),
        ("→", "initialized"),
        ("→", "components/list"),
        ("←", "components/list: result"),
        ("→", "components/execute"),
        ("←", "progress_update"),
        ("←", "blobs/put"),
        ("→", "blobs/put: result"),
        ("←", "components/execute: result"),
        ("→", "components/execute"),
        ("→", "$/cancelRequest"),
        ("←", "components/execute: -32800"),
    ]
