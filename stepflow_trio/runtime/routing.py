"""Which plugin a step's component belongs to, and what that plugin calls it.

A route is a path pattern (:mod:`stepflow_trio.protocol.paths`) with rules. Of the routes whose pattern fits a
component's path only the most specific one counts; of its rules, the first that applies. If none does, there
is no falling back to a less specific route.

A rule applies if all of its conditions hold for the step's input and its lists admit the component. A
condition names a value that must be there and be equal, by JSON's idea of it: ``1`` equals ``1.0``, and
``true`` equals neither. The lists hold component paths as the plugin knows them, such as ``/add``, and are
compared exactly; deny goes before allow.

What the plugin is asked for is the rule's ``component`` with ``{name}`` replaced by what the route's pattern
captured under that name. A rule without one asks for what ``{component}`` captured, or, where the pattern has
no such parameter, for what its only parameter captured; with no parameter, or several others, for the path
itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from stepflow_trio.errors import ConfigError, ErrorCode, LocalProtocolError, RpcError
from stepflow_trio.flows.diagnostics import printable
from stepflow_trio.flows.paths import JsonPath, NothingThere, render_path, resolve
from stepflow_trio.flows.suggestions import closest, did_you_mean
from stepflow_trio.protocol.paths import PathTable, parameter_names, with_leading_slash

__all__ = ["Condition", "Route", "RouteFault", "Router", "Rule", "Target", "route_faults"]

_MAX_SHOWN_CHARS = 200
_MAX_KNOWN = 1024
"""Components whose targets are remembered: any text may be asked for."""

_MAX_LISTED = 5
"""Routes or rules that a message names; a configuration may hold hundreds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Holds for an input that has ``value`` at ``path``."""

    path: JsonPath
    value: Any

    def holds(self, input: Any) -> bool:
        """Whether it does; where the path leads nowhere, it does not."""
        found = resolve(input, self.path)
        return not isinstance(found, NothingThere) and _json_equal(found, self.value)

    def is_same_as(self, other: Condition) -> bool:
        """Whether both hold for the same inputs."""
        return self.path == other.path and _json_equal(self.value, other.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way for a route's components to go; see the module's docstring.

    ``component_allow`` None admits every component, an empty one none.
    """

    plugin: str
    component: str | None = None
    conditions: tuple[Condition, ...] = ()
    component_allow: tuple[str, ...] | None = None
    component_deny: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A path pattern and its rules, the first to be tried first."""

    pattern: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A component as its plugin knows it."""

    plugin: str
    component: str


@dataclass(frozen=True, slots=True)
class RouteFault:
    """What is wrong with a route, at ``path`` below the routes: its pattern, a rule's index, a field."""

    path: JsonPath
    message: str


def route_faults(routes: Iterable[Route]) -> list[RouteFault]:
    """Everything that keeps routes from being used: an empty list for those that :class:`Router` takes."""
    return _compile(routes)[1]


class Router:
    """Finds the plugin for each component.

    Raises:
        ConfigError: a pattern is malformed, two fit the same paths, or a rule's ``component`` names what its
            route's pattern does not capture; with all such faults.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._table, faults = _compile(routes)
        if faults:
            raise ConfigError("\n".join(f"routes{render_path(f.path)[1:]}: {f.message}" for f in faults))
        self._known: dict[str, Target] = {}
        """Where components go whatever their input is."""

    def resolve(self, component: str, input: Any) -> Target:
        """Where a step with this component and this input goes.

        Raises:
            RpcError: no route fits or none of its rules applies (``ENTITY_NOT_FOUND``, never retried). Its
                data hold the ``component``, the ``available_routes`` and, if there is one, a ``suggestion``.
        """
        known = self._known.get(component)
        if known is not None:
            return known
        found = self._table.match(component)
        if found is None:
            raise self._no_route(component)
        route, captures = found
        depends_on_input = False
        for rule in route.rules:
            name = rule.component_for(component, captures)
            if not rule.admits(name):
                continue
            depends_on_input = depends_on_input or bool(rule.conditions)
            if all(condition.holds(input) for condition in rule.conditions):
                target = Target(rule.plugin, name)
                if not depends_on_input:
                    if len(self._known) >= _MAX_KNOWN:
                        self._known.clear()
                    self._known[component] = target
                return target
        raise self._no_rule(component, route, captures, input)

    def exposed_paths(self, plugin: str, component: str) -> list[str]:
        """The paths under which flows reach a plugin's component, in the order of the routes.

        A parameter that can have any value without changing the component stands in such a path by its name.
        A rule with conditions counts. One whose route is hidden by a more specific one does not, nor one
        after a rule that asks for no more than it.
        """
        component = with_leading_slash(component)
        paths: dict[str, None] = {}
        for route in self._table.values():
            for rule in route.rules:
                path = rule.path_for(component, route.pattern) if rule.plugin == plugin else None
                if path is not None and any(
                    self._reaches(example, route, rule, component) for example in self._examples(path)
                ):
                    paths[path] = None
        return list(paths)

    def _examples(self, path: str) -> list[str]:
        """Paths of every length that may matter, for one that ends with a parameter for all that is left.

        The names of parameters stand for any text that no route names.
        """
        last = path.rpartition("/")[2]
        if not last.startswith("{*"):
            return [path]
        longest = max(pattern.count("/") for pattern in self._table.patterns())
        return [path + f"/{last}" * more for more in range(longest + 1)]

    def _reaches(self, path: str, route: _CompiledRoute, rule: _CompiledRule, component: str) -> bool:
        found = self._table.match(path)
        if found is None or found[0] is not route:
            return False
        for candidate in route.rules:
            name = candidate.component_for(path, found[1])
            if candidate is rule:
                return name == component and rule.admits(name)
            if candidate.admits(name) and candidate.asks_no_more_than(rule):
                return False
        return False

    def _no_route(self, component: str) -> RpcError:
        patterns = self._table.patterns()
        shown = ", ".join(patterns[:_MAX_LISTED]) + (", …" if len(patterns) > _MAX_LISTED else "")
        message = f"Component {_shown(component)} not found: no route leads there (routes: {shown or 'none'})"
        return self._not_found(message, component, self._similar_path(component))

    def _no_rule(
        self, component: str, route: _CompiledRoute, captures: Mapping[str, str], input: Any
    ) -> RpcError:
        reasons = [
            f"rule {number} (plugin {rule.plugin}) {rule.refusal(component, captures, input)}"
            for number, rule in enumerate(route.rules[:_MAX_LISTED], 1)
        ]
        if len(route.rules) > _MAX_LISTED:
            reasons.append(f"and {len(route.rules) - _MAX_LISTED} more")
        message = (
            f"Component {_shown(component)} not found: "
            f"no rule of the route {route.pattern} applies to this step"
            f" ({'; '.join(reasons) or 'it has none'})"
        )
        return self._not_found(message, component, None)

    def _not_found(self, message: str, component: str, similar: str | None) -> RpcError:
        data: dict[str, Any] = {
            "component": _shown(component),
            "available_routes": self._table.patterns(),
        }
        if similar is not None:
            data["suggestion"] = f"did you mean {similar}?"
            message = f"{message}; did you mean {similar}?"
        return RpcError(ErrorCode.ENTITY_NOT_FOUND, message, data)

    def _similar_path(self, component: str) -> str | None:
        """A path that has a route and differs from ``component`` by a typing error in the route's part."""
        prefixes: dict[int, list[str]] = {}
        for pattern in self._table.patterns():
            prefix = pattern.partition("/{")[0]
            if prefix:
                prefixes.setdefault(prefix.count("/"), []).append(prefix)
        segments = with_leading_slash(component).split("/")
        for depth in sorted(prefixes, reverse=True):
            prefix = closest("/".join(segments[: depth + 1]), prefixes[depth])
            if prefix is not None:
                similar = "/".join([prefix, *segments[depth + 1 :]])
                if self._table.match(similar) is not None:
                    return similar
        return None


# ---- compiled routes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hole:
    """A place in a template for what a parameter captured."""

    name: str


class _CompiledRoute:
    __slots__ = ("pattern", "rules")

    def __init__(self, pattern: str, rules: Sequence[_CompiledRule]) -> None:
        self.pattern = pattern
        self.rules = tuple(rules)


class _CompiledRule:
    """A rule whose template has been read; ``template`` None stands for the path itself."""

    __slots__ = ("_allow", "_deny", "_template", "conditions", "plugin")

    def __init__(self, rule: Rule, template: tuple[str | _Hole, ...] | None) -> None:
        self.plugin = rule.plugin
        self.conditions = rule.conditions
        self._template = template
        self._allow = _component_set(rule.component_allow)
        self._deny = _component_set(rule.component_deny) or frozenset()

    def component_for(self, path: str, captures: Mapping[str, str]) -> str:
        """What the plugin is asked for."""
        if self._template is None:
            return with_leading_slash(path)
        return "".join([part if isinstance(part, str) else captures[part.name] for part in self._template])

    def admits(self, component: str) -> bool:
        """Whether the lists do."""
        return component not in self._deny and (self._allow is None or component in self._allow)

    def asks_no_more_than(self, other: _CompiledRule) -> bool:
        """Whether all of its conditions are among the other's."""
        return all(any(map(mine.is_same_as, other.conditions)) for mine in self.conditions)

    def path_for(self, component: str, pattern: str) -> str | None:
        """The path that `component_for` turns into ``component``, or None if there is none."""
        if self._template is None:
            return component
        found = re.fullmatch(self._template_regex(pattern), component, re.DOTALL)
        if found is None:
            return None
        captured = {written: text for n, text in found.groupdict().items() for written in _written(n)}
        return "/".join([captured.get(segment, segment) for segment in pattern.split("/")])

    def _template_regex(self, pattern: str) -> str:
        regex: list[str] = []
        seen: set[str] = set()
        for part in self._template or ():
            if isinstance(part, str):
                regex.append(re.escape(part))
            elif part.name in seen:
                regex.append(f"(?P={part.name})")
            else:
                seen.add(part.name)
                fits = ".+" if _written(part.name)[1] in pattern else "[^/]+"
                regex.append(f"(?P<{part.name}>{fits})")
        return "".join(regex)

    def refusal(self, component: str, captures: Mapping[str, str], input: Any) -> str:
        """Why it does not apply."""
        name = self.component_for(component, captures)
        if name in self._deny:
            return f"denies {_shown(name)}"
        if self._allow is not None and name not in self._allow:
            suggestion = did_you_mean(name, sorted(self._allow))
            return f"does not allow {_shown(name)}{', ' + suggestion if suggestion else ''}"
        unmet = next(condition for condition in self.conditions if not condition.holds(input))
        return f"asks for another value at {render_path(unmet.path)} of the input"


def _written(name: str) -> tuple[str, str]:
    """How a parameter may stand in a pattern."""
    return f"{{{name}}}", f"{{*{name}}}"


def _component_set(components: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if components is None else frozenset(map(with_leading_slash, components))


def _compile(routes: Iterable[Route]) -> tuple[PathTable[_CompiledRoute], list[RouteFault]]:
    table: PathTable[_CompiledRoute] = PathTable()
    faults: list[RouteFault] = []
    for route in routes:
        try:
            names = parameter_names(route.pattern)
        except LocalProtocolError as exc:
            faults.append(RouteFault((route.pattern,), str(exc)))
            continue
        rules: list[_CompiledRule] = []
        for index, rule in enumerate(route.rules):
            try:
                rules.append(_CompiledRule(rule, _template(rule.component, route.pattern, names)))
            except ValueError as exc:
                faults.append(RouteFault((route.pattern, index, "component"), str(exc)))
        try:
            table.add(route.pattern, _CompiledRoute(with_leading_slash(route.pattern), rules))
        except LocalProtocolError as exc:
            faults.append(RouteFault((route.pattern,), str(exc)))
    return table, faults


def _template(text: str | None, pattern: str, names: tuple[str, ...]) -> tuple[str | _Hole, ...] | None:
    """A rule's ``component`` in parts; raises ``ValueError`` that says what is wrong with it."""
    if text is None:
        name = "component" if "component" in names else names[0] if len(names) == 1 else None
        return None if name is None else ("/", _Hole(name))
    parts: list[str | _Hole] = []
    for number, piece in enumerate(re.split(r"\{\*?([^{}]*)\}", with_leading_slash(text))):
        if number % 2 == 0:
            if "{" in piece or "}" in piece:
                raise ValueError("there is a brace without its partner: write {name}")
            parts.append(piece)
        elif piece in names:
            parts.append(_Hole(piece))
        else:
            known = ", ".join(f"{{{name}}}" for name in names) or "nothing"
            hint = did_you_mean(piece, names)
            why = f"{{{piece}}} is not captured by {pattern}, which captures {known}"
            raise ValueError(f"{why}; {hint}" if hint else why)
    return tuple(part for part in parts if part)


def _json_equal(left: object, right: object) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        ours, theirs = cast("dict[str, object]", left), cast("dict[str, object]", right)
        return ours.keys() == theirs.keys() and all(_json_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(left, list) and isinstance(right, list):
        mine, others = cast("list[object]", left), cast("list[object]", right)
        return len(mine) == len(others) and all(map(_json_equal, mine, others))
    return left == right


def _shown(text: str) -> str:
    return printable(text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…")
