"""What a test case came to, without what its flow's schemas call secret."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import msgspec

from stepflow_trio.cli.case_finding import Case, FlowTests
from stepflow_trio.cli.case_running import CaseResult
from stepflow_trio.flows.expectations import Difference
from stepflow_trio.flows.results import Failed, FlowResult, Success
from stepflow_trio.flows.secret_schemas import SecretPlaces
from stepflow_trio.flows.secrets import FlowSecrets, SecretTexts, redact, redact_error, secret_strings


class CaseSecrets:
    """Knows what is secret of a flow's cases: places in input, variables and output, and the texts there."""

    def __init__(self, tests: FlowTests) -> None:
        self._places = FlowSecrets.of(tests.flow)

    def hidden(self, result: CaseResult) -> CaseResult:
        """What a case came to, as it may be shown; it has passed if it had before."""
        if self._places is None:
            return result
        texts = self._texts(result.case, result.result)
        return replace(
            result,
            case=replace(result.case, expected=self._hidden(result.case.expected, texts)),
            result=self._hidden(result.result, texts),
            problem=None if result.problem is None else texts.redact(result.problem),
            differences=tuple(self._hidden_difference(each, texts) for each in result.differences),
        )

    def are_in(self, result: FlowResult, case: Case) -> bool:
        """Whether there is something secret in a result of a case."""
        return self._places is not None and self._hidden(result, self._texts(case, result)) != result

    def _texts(self, case: Case, reached: FlowResult | None) -> SecretTexts:
        texts = SecretTexts()
        if (places := self._places) is not None:
            texts.add(secret_strings(case.input, places.input))
            texts.add(secret_strings({**places.default_variables, **case.variables}, places.variables))
            for result in (case.expected, reached):
                if isinstance(result, Success):
                    texts.add(secret_strings(result.result, places.output))
        return texts

    def _hidden(self, result: FlowResult | None, texts: SecretTexts) -> FlowResult | None:
        match result:
            case None:
                return None
            case Success():
                return Success(redact(result.result, self._output, texts))
            case Failed():
                return Failed(redact_error(result.error, texts))

    def _hidden_difference(self, difference: Difference, texts: SecretTexts) -> Difference:
        def hidden(value: Any) -> Any:
            if not difference.path and isinstance(value, dict):  # the result as a whole
                members = cast("dict[str, Any]", value)
                return {
                    name: redact(member, self._output if name == "result" else None, texts)
                    for name, member in members.items()
                }
            return redact(value, places, texts)

        places = self._output if difference.path[:1] == ("result",) else None
        for part in difference.path[1:]:
            if places is None or places.is_secret:
                break
            places = places.item(part) if isinstance(part, int) else places.field(part)
        return msgspec.structs.replace(
            difference, expected=hidden(difference.expected), actual=hidden(difference.actual)
        )

    @property
    def _output(self) -> SecretPlaces | None:
        return None if self._places is None else self._places.output
