"""Routes: which plugin a component belongs to, what it is called there, and where it can be reached."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ConfigError, ErrorCode, RpcError
from stepflow_trio.flows.paths import parse_path
from stepflow_trio.runtime.routing import Condition, Route, RouteFault, Router, Rule, Target, route_faults


def routes_of(routes):
    """Routes from a mapping of patterns to rules, or to the name of the plugin that gets everything."""
    return [
        Route(pattern, (Rule(plugin=rules),) if isinstance(rules, str) else tuple(rules))
        for pattern, rules in routes.items()
    ]


def router(routes):
    return Router(routes_of(routes))


def when(path, value):
    return Condition(path=parse_path(path), value=value)


def not_found(routes, component, input=None):
    with pytest.raises(RpcError) as raised:
        router(routes).resolve(component, input)
    assert raised.value.code == ErrorCode.ENTITY_NOT_FOUND
    return raised.value


# ---- which route ----------------------------------------------------------------------------------------


def test_a_component_goes_to_its_routes_plugin_under_what_component_captured():
    routes = router({"/builtin/{*component}": "builtin", "/py/{component}": "python"})
    assert routes.resolve("/builtin/eval", {}) == Target("builtin", "/eval")
    assert routes.resolve("/builtin/a/b", {}) == Target("builtin", "/a/b")
    assert routes.resolve("/py/add", None) == Target("python", "/add")
    assert routes.resolve("py/add", None) == Target("python", "/add")


def test_the_most_specific_pattern_wins_whatever_the_order():
    patterns = {"/{*component}": "rest", "/{a}/{component}": "two", "/m/{component}": "m", "/m/x": "exact"}
    for order in (patterns, dict(reversed(patterns.items()))):
        routes = router(order)
        assert routes.resolve("/m/x", None).plugin == "exact"
        assert routes.resolve("/m/y", None).plugin == "m"
        assert routes.resolve("/n/y", None).plugin == "two"
        assert routes.resolve("/n/y/z", None).plugin == "rest"
        assert routes.resolve("/n", None).plugin == "rest"


def test_a_less_specific_route_is_no_way_out_when_no_rule_applies():
    never = Rule(plugin="m", conditions=(when("$.never", 1),))
    error = not_found({"/{*component}": "rest", "/m/{component}": [never]}, "/m/x", {})
    assert "the route /m/{component}" in error.message


# ---- what the plugin is asked for -----------------------------------------------------------------------


def test_without_a_parameter_named_component_the_only_one_is_the_component():
    routes = router({"/one/{name}": "p", "/rest/{*name}": "p"})
    assert routes.resolve("/one/a", None).component == "/a"
    assert routes.resolve("/rest/a/b", None).component == "/a/b"


def test_with_several_parameters_the_one_named_component_counts_else_the_whole_path():
    routes = router({"/t/{tenant}/{component}": "p", "/u/{a}/{b}": "p", "/plain/path": "p"})
    assert routes.resolve("/t/me/add", None).component == "/add"
    assert routes.resolve("/u/x/y", None).component == "/u/x/y"
    assert routes.resolve("/plain/path", None).component == "/plain/path"


@pytest.mark.parametrize(
    ("template", "component"),
    [
        ("/fixed", "/fixed"),
        ("{rest}", "/b/c"),
        ("{*rest}", "/b/c"),
        ("/x/{name}/{rest}", "/x/a/b/c"),
        ("/{name}-{name}", "/a-a"),
        ("pre{name}", "/prea"),
    ],
)
def test_a_template_is_filled_with_what_the_pattern_captured(template, component):
    routes = router({"/{name}/{*rest}": [Rule(plugin="p", component=template)]})
    assert routes.resolve("/a/b/c", None) == Target("p", component)


def test_what_was_captured_is_not_taken_for_a_template():
    routes = router({"/{a}/{b}": [Rule(plugin="p", component="/{a}/{b}")]})
    assert routes.resolve("/{b}/{a}", None).component == "/{b}/{a}"


# ---- which rule -----------------------------------------------------------------------------------------


def test_the_first_rule_whose_conditions_all_hold_is_taken():
    routes = router(
        {
            "/llm/{component}": [
                Rule(plugin="both", conditions=(when("$.model", "m"), when("$.size", 1))),
                Rule(plugin="model", conditions=(when("$.model", "m"),)),
                Rule(plugin="else"),
                Rule(plugin="never"),
            ]
        }
    )
    assert routes.resolve("/llm/x", {"model": "m", "size": 1}).plugin == "both"
    assert routes.resolve("/llm/x", {"model": "m", "size": 2}).plugin == "model"
    assert routes.resolve("/llm/x", {"size": 1}).plugin == "else"


@pytest.mark.parametrize("input", [None, 7, "text", [], {}, {"a": None}, {"a": {}}, {"a": {"b": []}}])
def test_a_condition_on_a_path_that_is_not_there_does_not_hold_and_is_no_error(input):
    condition = when("$.a.b[0]", None)
    assert not condition.holds(input)
    assert condition.holds({"a": {"b": [None]}})


@pytest.mark.parametrize(
    ("wanted", "given", "holds"),
    [
        (1, 1.0, True),
        (1, True, False),
        (False, 0, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        ("1", 1, False),
        ([1, {"a": [True]}], [1.0, {"a": [True]}], True),
        ([1, {"a": [True]}], [1, {"a": [1]}], False),
        ([1], [1, 2], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({}, [], False),
        (2**53, 2.0**53, True),
        (2**53 + 1, 2.0**53, False),
    ],
)
def test_a_condition_compares_as_json_does(wanted, given, holds):
    assert when("$", wanted).holds(given) is holds


def test_lists_are_enforced_on_a_single_rule_without_conditions():
    allow = {"/p/{component}": [Rule(plugin="p", component_allow=("/add",))]}
    deny = {"/p/{component}": [Rule(plugin="p", component_deny=("/add",))]}
    assert router(allow).resolve("/p/add", None).component == "/add"
    assert "does not allow /sub" in not_found(allow, "/p/sub").message
    assert router(deny).resolve("/p/sub", None).component == "/sub"
    assert "denies /add" in not_found(deny, "/p/add").message


def test_lists_hold_what_the_plugin_is_asked_for_and_need_no_leading_slash():
    routes = {"/p/{x}": [Rule(plugin="p", component="/v1/{x}", component_deny=("v1/add", "/sub"))]}
    assert "denies /v1/add" in not_found(routes, "/p/add").message
    assert router(routes).resolve("/p/sub", None).component == "/v1/sub"


def test_deny_goes_before_allow_and_an_empty_allow_list_admits_nothing():
    both = [Rule(plugin="p", component_allow=("/a", "/b"), component_deny=("/a",)), Rule(plugin="q")]
    assert router({"/{component}": both}).resolve("/a", None).plugin == "q"
    assert router({"/{component}": both}).resolve("/b", None).plugin == "p"
    assert router({"/{component}": both}).resolve("/c", None).plugin == "q"
    not_found({"/{component}": [Rule(plugin="p", component_allow=())]}, "/a")


# ---- nothing fits ---------------------------------------------------------------------------------------


def test_a_component_without_a_route_is_an_error_that_says_which_routes_there_are():
    error = not_found({"/builtin/{*component}": "b", "/py/{component}": "p"}, "/nope")
    assert error.message == (
        "Component /nope not found: no route leads there (routes: /builtin/{*component}, /py/{component})"
    )
    assert error.data == {
        "component": "/nope",
        "available_routes": ["/builtin/{*component}", "/py/{component}"],
    }
    assert "(routes: none)" in not_found({}, "/nope").message


@pytest.mark.parametrize(
    ("component", "suggested"),
    [
        ("/bultin/eval", "/builtin/eval"),
        ("/Builtin/a/b", "/builtin/a/b"),
        ("/plain/paht", "/plain/path"),
        ("/pi/add", "/py/add"),
        ("/pi/add/more", None),
        ("/builtin", None),
        ("/quite/different", None),
        ("/", None),
        ("", None),
    ],
)
def test_a_typing_error_in_the_routes_part_of_a_path_gets_a_suggestion(component, suggested):
    routes = {"/builtin/{*component}": "b", "/plain/path": "p", "/py/{component}": "p"}
    error = not_found(routes, component)
    if suggested is None:
        assert "suggestion" not in error.data
        assert "did you mean" not in error.message
    else:
        assert error.data["suggestion"] == f"did you mean {suggested}?"
        assert error.message.endswith(f"; did you mean {suggested}?")


def test_where_no_rule_applies_the_error_says_why_for_each():
    rules = [
        Rule(plugin="a", conditions=(when("$.m", 1), when("$.secret", "s3cret"))),
        Rule(plugin="b", component_deny=("/add",)),
        Rule(plugin="c", component_allow=("/adds", "/x")),
    ]
    error = not_found({"/py/{component}": rules}, "/py/add", {"m": 1, "secret": "other"})
    assert error.message == (
        "Component /py/add not found: no rule of the route /py/{component} applies to this step ("
        "rule 1 (plugin a) asks for another value at $.secret of the input; "
        "rule 2 (plugin b) denies /add; "
        'rule 3 (plugin c) does not allow /add, did you mean "/adds"?)'
    )
    assert error.data == {"component": "/py/add", "available_routes": ["/py/{component}"]}


def test_the_error_stays_short_for_many_rules_and_long_names():
    rules = [Rule(plugin=f"p{n}", component_allow=()) for n in range(100)]
    error = not_found({"/{component}": rules}, "/" + "x" * 100_000)
    assert "and 95 more" in error.message
    assert len(error.message) < 3000
    assert len(error.data["component"]) < 300
    assert not_found({}, "/a\x1b[31m\n").message.startswith("Component /a\\x1b[31m\\n not found")


def test_a_route_without_rules_leads_nowhere():
    assert "(it has none)" in not_found({"/{component}": []}, "/a").message


# ---- what cannot be a route -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("/a//b", "empty segment"),
        ("/", "empty segment"),
        ("/a/", "empty segment"),
        ("/a{x}", "do not enclose a whole segment"),
        ("/{", "do not enclose"),
        ("/{1x}", "not a Python identifier"),
        ("/{x}/{x}", "two parameters named 'x'"),
        ("/{*x}/y", "before its end"),
    ],
)
def test_a_malformed_pattern_is_refused(pattern, why):
    (fault,) = route_faults(routes_of({pattern: "p"}))
    assert fault.path == (pattern,)
    assert why in fault.message
    with pytest.raises(ConfigError, match=re.escape(why)):
        router({pattern: "p"})


def test_two_patterns_for_the_same_paths_are_refused():
    assert route_faults(routes_of({"/m/{a}": "p", "/m/{*a}": "p", "/m/{b}": "q"})) == [
        RouteFault(("/m/{b}",), "component path '/m/{b}' fits the same paths as '/m/{a}', registered before")
    ]
    with pytest.raises(ConfigError, match="registered already"):
        router({"/a": "p", "a": "q"})


def test_a_template_that_cannot_be_filled_is_refused():
    rules = [
        Rule(plugin="p", component="{compnent}"),
        Rule(plugin="p", component="{other}"),
        Rule(plugin="p"),
        Rule(plugin="p", component="{component"),
        Rule(plugin="p", component="}{"),
        Rule(plugin="p", component="/{}"),
    ]
    faults = route_faults(routes_of({"/x/{component}": rules, "/y": rules[:1]}))
    uncaptured = "is not captured by /x/{component}, which captures {component}"
    assert [(fault.path, fault.message) for fault in faults] == [
        (
            ("/x/{component}", 0, "component"),
            f'{{compnent}} {uncaptured}; did you mean "component"?',
        ),
        (
            ("/x/{component}", 1, "component"),
            f"{{other}} {uncaptured}",
        ),
        (("/x/{component}", 3, "component"), "there is a brace without its partner: write {name}"),
        (("/x/{component}", 4, "component"), "there is a brace without its partner: write {name}"),
        (
            ("/x/{component}", 5, "component"),
            f"{{}} {uncaptured}",
        ),
        (("/y", 0, "component"), "{compnent} is not captured by /y, which captures nothing"),
    ]


def test_the_router_names_every_fault_with_its_place():
    with pytest.raises(ConfigError) as raised:
        router({"/a//b": "p", "/x/{a}": [Rule(plugin="p", component="{b}")]})
    assert str(raised.value).splitlines() == [
        "routes./a//b: component path '/a//b' has an empty segment: leave out the extra slash",
        "routes./x/{a}[0].component: {b} is not captured by /x/{a}, which captures {a}",
    ]


# ---- where a component can be reached -------------------------------------------------------------------


def test_a_component_is_exposed_under_each_route_that_leads_to_it():
    routes = router(
        {"/py/{*component}": "py", "/one/{component}": "py", "/other/{component}": "x", "/add": "py"}
    )
    assert routes.exposed_paths("py", "/add") == ["/py/add", "/one/add", "/add"]
    assert routes.exposed_paths("py", "add") == ["/py/add", "/one/add", "/add"]
    assert routes.exposed_paths("py", "/math/add") == ["/py/math/add"]
    assert routes.exposed_paths("nobody", "/add") == []


def test_a_template_is_read_backwards():
    routes = router(
        {
            "/v1/{name}": [Rule(plugin="p", component="/models/{name}/run")],
            "/twice/{a}": [Rule(plugin="p", component="/{a}/{a}")],
            "/swap/{a}/{*b}": [Rule(plugin="p", component="/{b}/by/{a}")],
        }
    )
    assert routes.exposed_paths("p", "/models/gpt/run") == ["/v1/gpt"]
    assert routes.exposed_paths("p", "/models/a/b/run") == []
    assert routes.exposed_paths("p", "/x/x") == ["/twice/x"]
    assert routes.exposed_paths("p", "/x/y") == []
    assert routes.exposed_paths("p", "/q/r/by/s") == ["/swap/s/q/r"]


def test_a_parameter_that_changes_nothing_stays_in_the_path():
    routes = router({"/t/{tenant}/{component}": "p", "/llm/{*any}": [Rule(plugin="p", component="/chat")]})
    assert routes.exposed_paths("p", "/add") == ["/t/{tenant}/add"]
    assert routes.exposed_paths("p", "/chat") == ["/t/{tenant}/chat", "/llm/{*any}"]


def test_a_route_that_is_only_reached_by_paths_of_some_length_is_exposed():
    chat = [Rule(plugin="p", component="/chat")]
    routes = {"/{*any}": chat, "/{a}": "q", "/{a}/{b}/{*any}": "q"}
    assert router(routes).exposed_paths("p", "/chat") == ["/{*any}"]
    assert router(routes | {"/{a}/{b}": "q"}).exposed_paths("p", "/chat") == []
    assert router({"/{*any}": chat, "/{a}": "q", "/{a}/{b}": "q"}).exposed_paths("p", "/chat") == ["/{*any}"]


def test_a_components_own_parameters_stay_in_the_path():
    routes = router({"/py/{*component}": "py"})
    assert routes.exposed_paths("py", "/models/{name}") == ["/py/models/{name}"]


def test_what_the_lists_shut_out_or_another_route_or_rule_hides_is_not_exposed():
    routes = router(
        {
            "/p/{component}": [
                Rule(plugin="p", component_deny=("/no",)),
                Rule(plugin="late"),
            ],
            "/p/taken": "other",
            "/c/{component}": [Rule(plugin="p", conditions=(when("$.m", 1),)), Rule(plugin="late")],
        }
    )
    assert routes.exposed_paths("p", "/yes") == ["/p/yes", "/c/yes"]
    assert routes.exposed_paths("p", "/no") == ["/c/no"]
    assert routes.exposed_paths("p", "/taken") == ["/c/taken"]
    assert routes.exposed_paths("late", "/yes") == ["/c/yes"]
    assert routes.exposed_paths("late", "/no") == ["/p/no", "/c/no"]


# ---- against a naive reference --------------------------------------------------------------------------

INPUTS = [{}, {"m": 1}, {"m": 2}, {"m": True}]


def fits(pattern, path):
    """What a pattern captures of a path, or None."""
    regex = re.sub(r"\\\{\\\*(\w+)\\\}", r"(?P<\1>.+)", re.escape(pattern))
    regex = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", regex)
    found = re.fullmatch(regex, path)
    return None if found is None else found.groupdict()


def specificity(pattern):
    return [2 if "{*" in s else 1 if "{" in s else 0 for s in pattern.split("/")[1:]]


def reference(routes, path, input):
    fitting = [route for route in routes if fits(route.pattern, path) is not None]
    if not fitting:
        return None
    route = min(fitting, key=lambda route: specificity(route.pattern))
    captures = fits(route.pattern, path)
    for rule in route.rules:
        if rule.component is not None:
            name = rule.component
            for key, value in captures.items():
                name = name.replace("{" + key + "}", value)
        elif "component" in captures:
            name = "/" + captures["component"]
        elif len(captures) == 1:
            name = "/" + next(iter(captures.values()))
        else:
            name = path
        holds = all(
            input.get(c.path[0]) == c.value and not isinstance(input.get(c.path[0]), bool)
            for c in rule.conditions
        )
        allowed = rule.component_allow is None or name in rule.component_allow
        if holds and allowed and name not in (rule.component_deny or ()):
            return Target(rule.plugin, name)
    return None


segments = st.sampled_from(["a", "b", "{a}", "{component}"])
patterns = (
    st.tuples(st.lists(segments, max_size=3), st.sampled_from([[], ["{*rest}"], ["{*component}"]]))
    .map(lambda parts: parts[0] + parts[1])
    .filter(lambda parts: parts and len([p for p in parts if "{" in p]) == len(captured(parts)))
    .map(lambda parts: "/" + "/".join(parts))
)
components = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


def captured(parts):
    return {part.strip("{*}") for part in parts if "{" in part}


@st.composite
def rules_for(draw, pattern, templates=True):
    names = sorted(captured(pattern.split("/")))
    template = st.just("/a") | st.sampled_from([f"/a/{{{n}}}" for n in names] or ["/b"])
    return Rule(
        plugin=draw(st.sampled_from("pq")),
        component=draw(st.none() | template) if templates else None,
        conditions=tuple(
            Condition(path=("m",), value=value)
            for value in draw(st.lists(st.sampled_from([1, 2]), max_size=1))
        ),
        component_allow=draw(st.none() | st.lists(components, max_size=2).map(tuple)),
        component_deny=draw(st.none() | st.lists(components, max_size=2).map(tuple)),
    )


@st.composite
def some_routes(draw, templates=True):
    routes = []
    for pattern in draw(st.lists(patterns, max_size=5)):
        rules = tuple(draw(st.lists(rules_for(pattern, templates), max_size=3)))
        if not route_faults([*routes, Route(pattern, rules)]):
            routes.append(Route(pattern, rules))
    return routes


def resolved(routes, path, input):
    try:
        return Router(routes).resolve(path, input)
    except RpcError as exc:
        return str(exc) and None


@given(some_routes(), components, st.sampled_from(INPUTS))
def test_routes_resolve_as_the_rules_say(routes, path, input):
    assert resolved(routes, path, input) == reference(routes, path, input)


@given(some_routes(), st.sampled_from("pq"), components)
def test_under_every_exposed_path_some_input_reaches_the_component(routes, plugin, component):
    for path in Router(routes).exposed_paths(plugin, component):
        examples = [path]
        if "{*" in path:  # it stands for paths of any length, and the names in it for any text
            examples += [path + "/x" * more for more in range(1, 6)]
        reached = [resolved(routes, example, input) for example in examples for input in INPUTS]
        assert Target(plugin, component) in reached


@given(some_routes(templates=False), components, st.sampled_from(INPUTS))
def test_every_component_that_can_be_reached_is_exposed(routes, path, input):
    target = resolved(routes, path, input)
    if target is not None:
        exposed = Router(routes).exposed_paths(target.plugin, target.component)
        assert any(fits(shown, path) is not None for shown in exposed)


ROUTES = routes_of(
    {
        "/a/{b}": [Rule(plugin="p", component="{b}", conditions=(when("$[0]", True),)), Rule(plugin="q")],
        "/{*all}": [Rule(plugin="p", component_deny=("/b",))],
        "/a/{b}/{*c}": [Rule(plugin="p", component="/{c}/{b}")],
    }
)


@given(st.text() | st.text("/ab"), st.recursive(st.none() | st.booleans() | st.text(), st.lists))
def test_any_path_and_input_give_a_target_or_the_documented_error(path, input):
    result = resolved(ROUTES, path, input)
    assert result is None or result.component.startswith("/")


@given(st.lists(st.sampled_from(["/", "a", "b", "{", "}", "{a}", "{b}", "{*a}", "*"])).map("".join))
def test_any_text_as_a_pattern_or_a_template_gives_a_router_or_faults(text):
    for routes in (routes_of({text: "p"}), routes_of({"/x/{a}": [Rule(plugin="p", component=text)]})):
        if not route_faults(routes):
            assert all(path.startswith("/") for path in Router(routes).exposed_paths("p", "/b"))
