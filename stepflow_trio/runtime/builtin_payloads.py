"""What the runtime's own components take and return."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from stepflow_trio.flows.results import Failed, Success


class ChatMessage(Struct, frozen=True):
    """One message of a chat."""

    role: str
    content: str


class CreateMessagesInput(Struct, frozen=True):
    """The texts of a chat's first messages."""

    user_prompt: str
    system_instructions: str | None = None


class CreateMessagesOutput(Struct, frozen=True):
    """A chat's first messages."""

    messages: list[ChatMessage]


class OpenAiInput(Struct, frozen=True):
    """A chat so far, and how to go on with it."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    temperature: float | None = None
    api_key: str | None = None
    model: str | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"<OpenAiInput of {len(self.messages)} messages>"


class OpenAiOutput(Struct, frozen=True):
    """The text of the next message."""

    response: str


class PutBlobInput(Struct, frozen=True):
    """What to store."""

    data: Any
    blob_type: str


class PutBlobOutput(Struct, frozen=True):
    """Under what it is stored."""

    blob_id: str


class GetBlobInput(Struct, frozen=True):
    """What to read."""

    blob_id: str


class GetBlobOutput(Struct, frozen=True):
    """What is stored."""

    data: Any


class LoadFileInput(Struct, frozen=True):
    """A file, and how to read it: by its ending where ``format`` is absent."""

    path: str
    format: str | None = None


class FileMetadata(Struct, frozen=True):
    """What is known of a file beside its content."""

    resolved_path: str
    size_bytes: int
    format: Literal["json", "yaml", "text"]


class LoadFileOutput(Struct, frozen=True):
    """A file's content, and what is known of it."""

    data: Any
    metadata: FileMetadata


class EvalInput(Struct, frozen=True):
    """A stored flow and its input."""

    flow_id: str
    input: Any


class EvalOutput(Struct, frozen=True):
    """What the flow came to, and the run that it did so in."""

    result: Success | Failed
    run_id: str


class MapInput(Struct, frozen=True):
    """A flow and one input for each item."""

    workflow: dict[str, Any]
    items: list[Any]
    max_concurrency: int | None = None


class MapOutput(Struct, frozen=True):
    """What the flow came to for each item, in their order."""

    results: list[Success | Failed]
    successful: int
    failed: int


class IterateInput(Struct, frozen=True):
    """A flow that is run again on its own ``next`` until it returns a ``result``."""

    flow: dict[str, Any]
    initial_input: Any
    max_iterations: Annotated[int, Meta(ge=0)] = 1000


class IterateOutput(Struct, frozen=True):
    """The last value. ``terminated`` says that it was not the flow which ended."""

    result: Any
    iterations: int
    terminated: bool
