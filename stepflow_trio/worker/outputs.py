"""What a component returned, held to be JSON before it is sent.

The wire's encoder is lenient where a result must not be: it writes NaN and the infinities as ``null``, bytes
as base64, sets as arrays and any key as a string. ``check_output`` lets nothing change its meaning silently.

Plain values are None, bool, int within 64 bits (signed or unsigned), finite float, str without lone
surrogates, list, tuple, and dict with str keys. Dates, times, durations, UUID, Decimal and Enum members have
one standard JSON form. The fields of a *record* (a msgspec Struct, a dataclass, an attrs or pydantic class)
are written as the record declares them: a field declared ``bytes`` is base64, one declared ``set[int]`` an
array, ``dict[int, …]`` has its keys written as strings. Everything else is refused, with the place and what
to do instead.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import math
import types
import uuid
import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol.codec import MAX_NESTING
from stepflow_trio.worker.schemas import AnnotationUnusable, walk_types

MAX_OUTPUT_DEPTH = MAX_NESTING - 2
"""Levels of objects and arrays in an output: those that the wire allows, less the message and its result."""

MAX_OUTPUT_VALUES = 2**25
"""Values in an output, counted as often as they are reached. A message of 64 MiB holds no more; a value that
contains one list many times over, level upon level, can stand for more than any machine could write."""

_MIN_INT = -(2**63)
_MAX_INT = 2**64 - 1
_MAX_PATH_CHARS = 200

_STANDARD_FORM = frozenset(
    (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, decimal.Decimal)
)
_BYTES = frozenset((bytes, bytearray, memoryview))
_SETS = frozenset((set, frozenset))
_CONSTANTS = frozenset((bool, types.NoneType))

_NOTHING: frozenset[type] = frozenset()
_EVERYTHING: frozenset[type] = _BYTES | _SETS | {dict}


class OutputInvalid(RpcError):
    """A component returned what JSON cannot hold (−32100).

    ``json_path`` says where in the returned value; ``data`` is ``{"path": …, "type": …}``.
    """

    def __init__(self, message: str, json_path: str, type_name: str) -> None:
        super().__init__(ErrorCode.COMPONENT_FAILED, message, {"path": json_path, "type": type_name})
        self.json_path = json_path


def check_output(value: Any, *, max_depth: int = MAX_OUTPUT_DEPTH) -> Any:
    """A value that the wire's encoder writes as exactly what ``value`` says.

    That is ``value`` itself, uncopied, unless something in it (a pydantic model, an instance of a subclass of
    str, int or float) first has to become plain.

    Raises:
        OutputInvalid: something in it has no JSON form, or it nests deeper than ``max_depth`` levels, as one
            that contains itself does.
    """
    walk = _Walk()
    try:
        walk.check(value, max_depth, _NOTHING)
    except _Refused as refused:
        path = json_path(reversed(refused.path))
        message = f"the output is not JSON: {refused.reason} at {path}"
        raise OutputInvalid(message, path, refused.type_name) from refused.__cause__
    except RecursionError:
        raise OutputInvalid("the output nests too deep for the stack", "$", type(value).__name__) from None
    return msgspec.to_builtins(value, str_keys=True, enc_hook=walk.plain_form) if walk.plain else value


def json_path(parts: Iterable[str | int]) -> str:
    """``("a", 3, "b c")`` → ``$.a[3]["b c"]``, shortened in the middle when it is very long."""
    text = "$" + "".join(map(_path_part, parts))
    if len(text) > _MAX_PATH_CHARS:
        text = f"{text[: _MAX_PATH_CHARS // 2]}…{text[-_MAX_PATH_CHARS // 2 :]}"
    return text


def _path_part(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    import json  # here, as a worker's start-up does not need it

    return f".{part}" if part.isidentifier() else f"[{json.dumps(part)}]"


class _Refused(Exception):
    """Carries the path outwards: each level that it passes appends its own step, the innermost first."""

    def __init__(self, reason: str, type_name: str) -> None:
        self.reason = reason
        self.type_name = type_name
        self.path: list[str | int] = []


class _Walk:
    """One pass over a value. Nothing is copied; what needs another form is noted in ``plain``."""

    __slots__ = ("left", "plain")

    def __init__(self) -> None:
        self.left = MAX_OUTPUT_VALUES
        self.plain: dict[int, Any] = {}

    def plain_form(self, value: Any) -> Any:
        """The encoder asks for this wherever it meets a type that it does not know."""
        return self.plain[id(value)]

    def check(self, value: Any, depth: int, declared: frozenset[type]) -> None:
        """Refuse what is not JSON.

        ``declared`` names the types that the enclosing record declares a form for; dict stands for keys that
        are not strings.
        """
        kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]: anything at all
        if kind is str:
            if not value.isascii():
                _check_text(value)
        elif kind is int:
            if not _MIN_INT <= value <= _MAX_INT:
                raise _Refused(
                    f"an integer of {value.bit_length()} bits, which other languages cannot hold: "
                    "return it as text",
                    "int",
                )
        elif kind is float:
            if not math.isfinite(value):
                raise _Refused(f"the number {value}, which JSON does not have: return None or text", "float")
        elif value is None or kind is bool:
            pass
        elif kind is dict:
            self._check_dict(value, depth, declared)
        elif kind is list or kind is tuple:
            self._check_items(value, depth, declared)
        else:
            self._check_other(value, kind, depth, declared)

    def _check_dict(self, value: dict[Any, Any], depth: int, declared: frozenset[type]) -> None:
        self._enter(value, len(value), depth)
        depth -= 1
        for key, item in value.items():
            if type(key) is not str:
                _check_key(key, declared)
            elif not key.isascii():
                _check_text(key, "a key")
            try:
                self.check(item, depth, declared)
            except _Refused as refused:
                refused.path.append(key if isinstance(key, str) else str(key))
                raise

    def _check_items(self, value: Any, depth: int, declared: frozenset[type]) -> None:
        self._enter(value, len(value), depth)
        if _is_plain_column(value):
            return
        depth -= 1
        for at, item in enumerate(value):
            try:
                self.check(item, depth, declared)
            except _Refused as refused:
                refused.path.append(at)
                raise

    def _check_record(self, value: Any, form: _RecordForm, depth: int) -> None:
        self._enter(value, len(form.fields), depth)
        depth -= 1
        for name, encoded_name in form.fields:
            # The encoder, too, leaves out what is UNSET and what was deleted.
            item = getattr(value, name, msgspec.UNSET)
            if item is msgspec.UNSET:
                continue
            try:
                self.check(item, depth, form.declared)
            except _Refused as refused:
                refused.path.append(encoded_name)
                raise

    def _check_other(self, value: Any, kind: type[Any], depth: int, declared: frozenset[type]) -> None:
        if kind in _STANDARD_FORM:
            return
        if isinstance(value, enum.Enum):
            self.check(value.value, depth, _NOTHING)
        elif form := _record_form(kind):
            self._check_record(value, form, depth)
        elif issubclass(kind, dict):
            self._check_dict(cast("dict[Any, Any]", value), depth, declared)
        elif issubclass(kind, (list, tuple)) or (kind in _SETS and kind in declared):
            self._check_items(value, depth, declared)
        elif hasattr(kind, "model_dump"):
            self._check_replaced(value, _dumped(value, kind), depth)
        elif issubclass(kind, str):
            self._check_replaced(value, str.__str__(value), depth)
        elif issubclass(kind, int):
            self._check_replaced(value, int.__int__(value), depth)
        elif issubclass(kind, float):
            self._check_replaced(value, float.__float__(value), depth)
        elif not (kind in _BYTES and kind in declared):
            raise _Refused(_why_not(value, kind), kind.__qualname__)

    def _check_replaced(self, value: object, plain: Any, depth: int) -> None:
        self.check(plain, depth, _NOTHING)
        self.plain[id(value)] = plain

    def _enter(self, value: object, length: int, depth: int) -> None:
        if depth <= 0:
            raise _Refused("nested too deep (does it contain itself?)", type(value).__qualname__)
        self.left -= length + 1
        if self.left < 0:
            raise _Refused(f"more than {MAX_OUTPUT_VALUES:,} values", type(value).__qualname__)


def _is_plain_column(items: Iterable[Any]) -> bool:
    """Whether these are plain values all of one type; False may also mean that a closer look is needed."""
    kinds = set(map(type, items))
    if len(kinds) == 1:
        (kind,) = kinds
        if kind is float:
            return math.isfinite(sum(items))  # NaN and the infinities stay in a sum, whatever is added
        if kind is int:
            return min(items) >= _MIN_INT and max(items) <= _MAX_INT
        if kind is str:
            return all(map(str.isascii, items))
    return kinds <= _CONSTANTS


def _check_text(text: str, what: str = "text") -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise _Refused(
            f"{what} with a lone surrogate, which is not Unicode (character {exc.start}),", "str"
        ) from None


def _check_key(key: Any, declared: frozenset[type]) -> None:
    plain: Any = cast("Any", key).value if dict in declared and isinstance(key, enum.Enum) else key
    kind: type[Any] = type(plain)  # pyright: ignore[reportUnknownVariableType]: anything at all
    if issubclass(kind, str):
        _check_text(str.__str__(plain), "a key")
    elif dict not in declared or not (
        (kind is int and _MIN_INT <= plain <= _MAX_INT)
        or (kind is float and math.isfinite(plain))
        or kind is bytes
        or kind in _STANDARD_FORM
    ):
        raise _Refused(f"a key of type {kind.__qualname__}: keys are strings", kind.__qualname__)


class _RecordForm(msgspec.Struct, frozen=True):
    fields: tuple[tuple[str, str], ...]
    """Each field's name in Python and in JSON."""
    declared: frozenset[type]


_record_forms: weakref.WeakKeyDictionary[type, _RecordForm | None] = weakref.WeakKeyDictionary()


def _record_form(kind: type[Any]) -> _RecordForm | None:
    try:
        return _record_forms[kind]
    except KeyError:
        form = _record_forms[kind] = _read_record_form(kind)
        return form


def _read_record_form(kind: type[Any]) -> _RecordForm | None:
    names: Iterable[str]
    if issubclass(kind, msgspec.Struct):
        names = kind.__struct_fields__
        encoded_names: Iterable[str] = kind.__struct_encode_fields__
    elif dataclasses.is_dataclass(kind):
        names = encoded_names = tuple(field.name for field in dataclasses.fields(kind))
    elif hasattr(kind, "__attrs_attrs__"):
        names = encoded_names = tuple(
            # The encoder leaves out the private fields of an attrs class, though not those of a dataclass.
            a.name
            for a in cast("Any", kind).__attrs_attrs__
            if not a.name.startswith("_")
        )
    else:
        return None
    return _RecordForm(tuple(zip(names, encoded_names, strict=True)), _declared_by(kind))


def _declared_by(kind: type[Any]) -> frozenset[type]:
    info = msgspec.inspect
    declared: set[type] = set()
    try:
        for _path, node in walk_types(kind):
            match node:
                case info.BytesType():
                    declared.add(bytes)
                case info.ByteArrayType():
                    declared.add(bytearray)
                case info.MemoryViewType():
                    declared.add(memoryview)
                case info.SetType():
                    declared.add(set)
                case info.FrozenSetType():
                    declared.add(frozenset)
                case info.DictType(key_type=key) if not isinstance(key, (info.StrType, info.AnyType)):
                    declared.add(dict)
                case _:
                    pass
    except AnnotationUnusable:
        return _EVERYTHING  # a class whose fields cannot be read is given the benefit of the doubt
    return frozenset(declared)


def _dumped(value: Any, kind: type[Any]) -> Any:
    """A pydantic model as its serialization schema describes it."""
    dump: Callable[..., Any] = value.model_dump
    try:
        return dump(mode="json", by_alias=True, warnings="error")
    except (ValueError, TypeError, RecursionError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise _Refused(
            f"a {kind.__qualname__} that pydantic cannot write ({reason})", kind.__qualname__
        ) from exc


def _why_not(value: Any, kind: type[Any]) -> str:
    name = kind.__qualname__
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # or Python warns, much later, that it was never awaited
        return f"a {name}: did you forget await?"
    if issubclass(kind, (bytes, bytearray, memoryview)):
        return f"{name} (bytes are not JSON: encode them as text, or store them with put_blob)"
    if issubclass(kind, (set, frozenset)):
        return f"a {name} (it has no order: return sorted(…) or list(…) of it)"
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return f"a {name}: return a list of what it yields"
    if hasattr(value, "tolist"):
        return f"a {kind.__module__}.{name}: return its .tolist()"
    return f"a {kind.__module__}.{name}, which has no JSON form"
