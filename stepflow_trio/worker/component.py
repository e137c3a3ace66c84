"""A component: a Python function under a path, with what can be said about it to a peer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, cast

from stepflow_trio.errors import ErrorCode, LocalProtocolError, RpcError
from stepflow_trio.protocol.paths import parameter_names, with_leading_slash
from stepflow_trio.worker.schemas import AnnotationUnusable, JsonSchema
from stepflow_trio.worker.signature import Bind, Signature, innermost, is_async, read_signature

Kind = Literal["async", "thread", "inline"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Component:
    """One component.

    An annotation may name what is defined further down in the module: it is then looked up again whenever the
    component is listed or called. While that fails, or where a type cannot be described, nothing but this
    component is affected: the schema is ``{}``, ``problems`` says why, and ``signature``, if it is the
    parameters that cannot be read, raises what a call is to be answered with.
    """

    path: str
    """The path or pattern that it is registered under, with its leading slash."""
    fn: Callable[..., Any]
    description: str | None
    kind: Kind
    """How a call runs: awaited on the event loop, in a worker thread, or called right on the event loop."""
    read: Callable[[], Signature] = dataclasses.field(repr=False)
    """Reads the signature, or raises AnnotationUnusable."""

    @functools.cached_property
    def signature(self) -> Signature:
        """How to call ``fn``.

        Raises:
            RpcError: (−32008) a parameter's annotation cannot be resolved, or no JSON value fits it.
        """
        try:
            return self.read()
        except LocalProtocolError as exc:
            data = {"component": self.path, "reason": str(exc)}
            raise RpcError(ErrorCode.CONFIGURATION_ERROR, str(exc), data) from exc

    @property
    def bind(self) -> Bind:
        """``signature.bind``, raising what ``signature`` raises: makes the arguments of one call."""
        return self.signature.bind

    @property
    def input_schema(self) -> JsonSchema:
        """The JSON Schema of the input; ``{}`` allows anything."""
        try:
            return self._input_schema
        except (RpcError, AnnotationUnusable):
            return {}

    @property
    def output_schema(self) -> JsonSchema:
        """The JSON Schema of the output; ``{}`` allows anything."""
        try:
            return self._output_schema
        except (RpcError, AnnotationUnusable):
            return {}

    @property
    def problems(self) -> tuple[str, ...]:
        """What its author should know: why a schema is missing, or why it cannot be called."""
        try:
            _ = self.signature
        except RpcError as exc:
            return (exc.message,)
        found: list[str] = []
        for what in ("input", "output"):
            try:
                _ = self._input_schema if what == "input" else self._output_schema
            except AnnotationUnusable as exc:
                found.append(f"component {self.path}: its {what} has no schema: {exc}")
        return tuple(found)

    @functools.cached_property
    def _input_schema(self) -> JsonSchema:
        return self.signature.input_schema()

    @functools.cached_property
    def _output_schema(self) -> JsonSchema:
        return self.signature.output_schema()


def define_component(
    fn: Callable[..., Any],
    *,
    path: str | None = None,
    description: str | None = None,
    inline: bool = False,
    context_type: type,
) -> Component:
    """Make a component of a function.

    Args:
        fn: anything callable that ``read_signature`` can read.
        path: a path or pattern; ``/`` and the function's name where it is None.
        description: the function's docstring where it is None.
        inline: call a function that is not async on the event loop, which it must not block, instead of in a
            thread.
        context_type: the class that marks the parameter for the context.

    Raises:
        LocalProtocolError: the path is malformed, or ``fn`` can never be a component. An annotation that
            cannot be used is no such error: see ``Component``.
    """
    path = with_leading_slash(path if path is not None else _name(fn))
    read = functools.partial(
        read_signature,
        fn,
        path_params=frozenset(parameter_names(path)),
        context_type=context_type,
        component=path,
    )
    with contextlib.suppress(AnnotationUnusable):
        signature = read()
        read = functools.partial(_already_read, signature)
    if is_async(fn):
        if inline:
            raise LocalProtocolError(
                f"component {path}: an async function runs on the event loop anyway: leave out inline"
            )
        kind: Kind = "async"
    else:
        kind = "inline" if inline else "thread"
    return Component(
        path=path,
        fn=fn,
        description=_docstring(fn) if description is None else description,
        kind=kind,
        read=read,
    )


def _already_read(signature: Signature) -> Signature:
    return signature


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = cast("Any", fn).func
    name: str = getattr(fn, "__name__", "")
    if not name.isidentifier():
        raise LocalProtocolError(f"{fn!r} has no name to make a path of: give one, as in path='/add'")
    return name


def _docstring(fn: Any) -> str | None:
    text = fn.__doc__ if inspect.isroutine(fn) else innermost(fn).__doc__
    return inspect.cleandoc(text) if text else None
