"""What the runtime hides of what it tells: the secrets of its runs (see :mod:`stepflow_trio.flows.secrets`).

======================================  ==================================================================
recorded events, and so all that is     what is at the secret places of the run's flow, and every string that
read from the record: the REST API,     was found at one in the run, in those above it or in those below it,
event streams; and their observers      from when it was found on
lines that workers write, what they     the strings of all runs, also of those that are over: up to
say of progress, why they ended, the    :data:`REMEMBERED_STRINGS` of them
package's own log while the runtime
is open
failures of runs, wherever they go      the strings of the run
======================================  ==================================================================

Not hidden: what components are given and return, what whoever submitted a run in this process has from it
(`Run.results`, `Runtime.run`), and what components are answered about the runs that they submitted, for these
are what a run is for; flows, which are stored as they are; blobs; numbers, and strings too short, at other
places than their own; and what a component writes of a secret that its output is yet to bring.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import trio
from msgspec.structs import replace

from stepflow_trio.errors import is_transport_code
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.secrets import (
    FlowSecrets,
    SecretPlaces,
    SecretTexts,
    redact,
    redact_error,
    secret_strings,
)
from stepflow_trio.runtime.events import (
    Event,
    ItemEnded,
    RunEvent,
    RunStarted,
    StepEnded,
    StepRetrying,
    WorkerEnded,
    WorkerLine,
)

REMEMBERED_STRINGS = 10_000
"""A line that a worker wrote may be read when its run is over. Of the runs that are, so many secrets are kept
in mind, the last ones; as many as those of the runs at work where these are more.

Those of runs at work are kept without a bound, beside the inputs and results that they come from, until the
topmost run and all below it are over: what was let go of at a bound would be told from then on.
"""

INPUTS_AT_ONCE = 250
"""A submission may have a hundred thousand; between so many of them others have their turns."""

LOGGERS = tuple(
    f"stepflow_trio.{room}" for room in ("engine", "runtime", "transports", "transports.http", "worker")
)
"""What the package logs to."""


class _RunSecrets:
    """What is secret in one run."""

    __slots__ = ("hides_results", "places", "strings", "variables")

    def __init__(
        self, places: FlowSecrets | None, variables: tuple[SecretPlaces, ...], strings: SecretTexts
    ) -> None:
        self.places = places
        self.variables = variables
        """By its own flow's schemas, and by those of the runs above, which hand their variables down."""
        self.strings = strings
        """One for the run, all above it and all below it."""
        self.hides_results = False

    def part(self, name: str) -> SecretPlaces | None:
        return self.places.part(name) if self.places is not None else None


class Redaction:
    """Knows the secrets of a runtime's runs, and takes them out of what is told."""

    def __init__(self) -> None:
        self._runs: dict[str, _RunSecrets] = {}
        self.is_idle = True
        """No flow with secrets was run yet: everything may be told as it is."""
        self._remembered = SecretTexts()
        self._remembered_before = SecretTexts()
        self._remembers_up_to = REMEMBERED_STRINGS

    # ---- runs -----------------------------------------------------------------------------------------

    def begin(
        self,
        run_id: str,
        places: FlowSecrets | None,
        variables: Mapping[str, Any],
        *,
        parent_run_id: str | None = None,
    ) -> None:
        """A run is to begin, which knows all that is secret in the one above it."""
        above = self._runs.get(parent_run_id) if parent_run_id is not None else None
        if above is None:
            known = _RunSecrets(places, (), SecretTexts())
        else:
            known = _RunSecrets(places, above.variables, above.strings)
        self._runs[run_id] = known
        if places is None:
            return
        self.is_idle = False
        if places.variables is not None:
            known.variables += (places.variables,)
            self._learn(known, secret_strings(places.default_variables, places.variables))
            self._learn(known, secret_strings(dict(variables), places.variables))

    async def started(self, event: RunStarted) -> RunStarted:
        """The start of a run as it is recorded and shown. Called before anything else is told of the run.

        What is secret of its inputs is known from here on. Others have their turns while many are gone
        through; cancelled, it leaves the run to be ended.
        """
        known = self._runs.get(event.run_id)
        if known is None:
            return event
        places = known.part("input")
        if places is not None:
            strings: list[str] = []
            for number, input in enumerate(event.inputs, 1):
                strings += secret_strings(input, places)
                if number % INPUTS_AT_ONCE == 0:
                    self._learn(known, strings)
                    strings.clear()
                    await trio.lowlevel.checkpoint()
            self._learn(known, strings)
        if places is None and not known.variables and not known.strings:
            return event
        inputs: list[Any] = []
        for number, input in enumerate(event.inputs, 1):
            inputs.append(redact(input, places, known.strings))
            if number % INPUTS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return _started(event, inputs, known)

    def end(self, run_id: str) -> bool:
        """A run is no longer at work. Whether a result of it is on record as other than it is."""
        known = self._runs.pop(run_id, None)
        return known is not None and known.hides_results

    def recorded(self, event: RunEvent) -> RunEvent:
        """An event after the start as it is recorded and shown. Called once for each, in their order.

        Strings at a secret place of an output are hidden from here on. The failure of a connection is also
        rid of other runs' secrets, for it quotes what the worker wrote last.
        """
        known = self._runs.get(event.run_id)
        if known is None:
            return event
        match event:
            case StepEnded(result=result):
                shown = self._result(known, result, known.part(f"steps.{event.step_id}"))
                return event if shown is result else replace(event, result=shown)
            case ItemEnded(result=result):
                shown = self._result(known, result, known.part("output"))
                if shown is result:
                    return event
                known.hides_results = known.hides_results or isinstance(result, Success)
                return replace(event, result=shown)
            case StepRetrying(error=error):
                without = self._error(known, error)
                return event if without is error else replace(event, error=without)
            case _:
                return event

    def failure(self, run_id: str, failed: Failed) -> Failed:
        """A failure of a run that is at work, as it is shown to everybody."""
        known = self._runs.get(run_id)
        if self.is_idle or known is None:
            return failed
        error = self._error(known, failed.error)
        return failed if error is failed.error else Failed(error)

    def _result(self, known: _RunSecrets, result: FlowResult, places: SecretPlaces | None) -> FlowResult:
        if isinstance(result, Failed):
            error = self._error(known, result.error)
            return result if error is result.error else Failed(error)
        if places is None and not known.strings:
            return result
        if places is not None:
            self._learn(known, secret_strings(result.result, places))
        shown = redact(result.result, places, known.strings)
        return result if shown is result.result else Success(shown)

    def _error(self, known: _RunSecrets, error: FlowError) -> FlowError:
        error = redact_error(error, known.strings)
        if is_transport_code(error.code):
            for strings in (self._remembered, self._remembered_before):
                error = redact_error(error, strings)
        return error

    def _learn(self, known: _RunSecrets, strings: Iterable[str]) -> None:
        new = known.strings.add(strings)
        if not new:
            return
        self._remembered.add(new)
        if len(self._remembered) <= self._remembers_up_to:
            return
        # Those at work stay; they are not gone through again and again where they are most of all.
        at_work = {id(known.strings): known.strings for known in self._runs.values()}.values()
        self._remembers_up_to = max(REMEMBERED_STRINGS, 2 * sum(map(len, at_work)))
        if len(self._remembered) > self._remembers_up_to:
            self._remembered_before = self._remembered
            self._remembered = SecretTexts(chain.from_iterable(at_work))

    # ---- what belongs to no run -----------------------------------------------------------------------

    def text(self, text: str) -> str:
        """A text that may be about any run, without the secrets of all of them."""
        return self._remembered_before.redact(self._remembered.redact(text))

    def told(self, event: Event) -> Event:
        """What a worker wrote, or why it ended, as it is shown; other events as they are."""
        if self.is_idle:
            return event
        if isinstance(event, WorkerLine):
            return WorkerLine(plugin=event.plugin, text=self.text(event.text))
        if isinstance(event, WorkerEnded):
            return WorkerEnded(plugin=event.plugin, detail=self.text(event.detail))
        return event

    @contextmanager
    def guarding_logs(self) -> Generator[None]:
        """Let the package log no secrets, as long as the block lasts.

        A record that holds one comes to its handlers without: its message is final, and its exception is a
        text (``exc_text``).
        """
        guard = _LogGuard(self)
        loggers = [logging.getLogger(name) for name in LOGGERS]
        for logger in loggers:
            logger.addFilter(guard)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(guard)


class _LogGuard(logging.Filter):
    def __init__(self, redaction: Redaction) -> None:
        super().__init__()
        self._redaction = redaction
        self._formatter = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        if self._redaction.is_idle:
            return True
        message = record.getMessage()
        shown = self._redaction.text(message)
        if shown is not message:
            record.msg, record.args = shown, None
        text = record.exc_text
        if text is None and record.exc_info:
            text = self._formatter.formatException(record.exc_info)
        if text is not None and (shown := self._redaction.text(text)) is not text:
            record.exc_info, record.exc_text = None, shown
        return True


def _started(event: RunStarted, inputs: list[Any], known: _RunSecrets) -> RunStarted:
    strings = known.strings
    given: Any = event.variables if isinstance(event.variables, dict) else dict(event.variables)
    variables: Any = given
    for by_one in known.variables:
        variables = redact(variables, by_one, strings)
    if not known.variables:
        variables = redact(variables, None, strings)
    overrides = _without_strings(event.overrides, strings)
    is_same = all(map(operator.is_, inputs, event.inputs))
    if is_same and variables is given and overrides is event.overrides:
        return event
    return replace(
        event, inputs=event.inputs if is_same else inputs, variables=variables, overrides=overrides
    )


def _without_strings(overrides: Mapping[str, Any] | None, strings: SecretTexts) -> Mapping[str, Any] | None:
    """The overrides of a submission, which still name the same steps and are of the same type."""
    if overrides is None or not isinstance(overrides.get("steps"), dict):
        return overrides
    steps: dict[str, Any] = overrides["steps"]
    shown: dict[str, Any] = {}
    for step_id, patch in steps.items():
        value = patch.get("value") if isinstance(patch, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]: any JSON
        without = redact(value, None, strings)
        shown[step_id] = patch if without is value else {**patch, "value": without}
    is_same = all(map(operator.is_, shown.values(), steps.values()))
    return overrides if is_same else {**overrides, "steps": shown}
