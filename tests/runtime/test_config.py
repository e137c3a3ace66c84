"""The configuration file: what is read, what is warned of, what is refused, and where."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ConfigError
from stepflow_trio.runtime.config import (
    DEFAULT_CONFIG,
    FILE_NAMES,
    BuiltinPluginConfig,
    Config,
    StdioPluginConfig,
    find_config,
    read_config,
    read_config_file,
)
from stepflow_trio.runtime.retries import Constant, Exponential, Fibonacci, RetryPolicy
from stepflow_trio.runtime.routing import Condition, Route, Router, Rule, Target

ENVIRON = {"PYTHON": "/usr/bin/python3", "TOKEN": "topsecret", "EMPTY": ""}


def read(text, name="c.yml", environ=ENVIRON):
    return read_config(text, name=name, directory=Path("/flows"), environ=environ)


def refused(text, name="c.yml"):
    """The error's lines, each with its place."""
    with pytest.raises(ConfigError) as raised:
        read(text, name)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith(f"{raised.value.place}: ")
    return lines


def marked(text):
    """A text without the « in it, and where that stood."""
    before, _, after = text.partition("«")
    return before + after, f"c.yml:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def assert_refused(text, message):
    """One thing is wrong, at the « in the text."""
    text, place = marked(text)
    assert refused(text) == [f"{place}: {message}"]


def assert_warned(text, message):
    """One thing has no effect, at the « in the text."""
    text, place = marked(text)
    assert read(text).warnings == (f"{place}: {message}",)


def worker(more="", command="worker"):
    return f"""\
plugins:
  py:
    type: stepflow
    transport: stdio
    command: {command}
    {more}
routes:
  /py/{{*component}}: [{{plugin: py}}]
"""


def rule(text):
    return f"""\
plugins:
  py: {{type: builtin}}
routes:
  /r/{{component}}:
    - {text}
"""


def retry(text):
    return f"""\
plugins: {{}}
routes: {{}}
retry: {text}
"""


# ---- what is read ---------------------------------------------------------------------------------------


def test_a_whole_configuration_is_read():
    config = read(
        """\
workingDirectory: workers
plugins:
  builtin:
    type: builtin
  py:
    type: stepflow
    transport: stdio
    command: $PYTHON
    args: [-m, "${MODULE:-my.worker}", "--level=${LEVEL:info}", $$x]
    env:
      TOKEN: "Bearer ${TOKEN}"
      EMPTY: ""
routes:
  /builtin/{*component}:
    - plugin: builtin
  /py/{component}:
    - plugin: py
      component: /v1/{component}
      conditions:
        - {path: $.model, value: m}
        - {path: "$['a.b'][0]", value: null}
      componentAllow: [/v1/a, /v1/b]
      componentDeny: []
    - plugin: builtin
      conditions: null
      componentAllow: null
retry:
  transportMaxRetries: 7
  backoff: {type: exponential, minDelayMs: 250, maxDelayMs: 60000, factor: 1.5}
"""
    )
    assert config == Config(
        plugins={
            "builtin": BuiltinPluginConfig(),
            "py": StdioPluginConfig(
                command="/usr/bin/python3",
                args=("-m", "my.worker", "--level=info", "$x"),
                env={"TOKEN": "Bearer topsecret", "EMPTY": ""},
                working_directory=Path("/flows/workers"),
            ),
        },
        routes=(
            Route("/builtin/{*component}", (Rule(plugin="builtin"),)),
            Route(
                "/py/{component}",
                (
                    Rule(
                        plugin="py",
                        component="/v1/{component}",
                        conditions=(
                            Condition(path=("model",), value="m"),
                            Condition(path=("a.b", 0), value=None),
                        ),
                        component_allow=("/v1/a", "/v1/b"),
                        component_deny=(),
                    ),
                    Rule(plugin="builtin"),
                ),
            ),
        ),
        retry=RetryPolicy(
            transport_max_retries=7,
            backoff=Exponential(min_delay_s=0.25, max_delay_s=60.0, factor=1.5),
        ),
        warnings=(),
        source="c.yml",
    )


def test_json_is_read_too():
    text = json.dumps(
        {"plugins": {"b": {"type": "builtin"}}, "routes": {"/b/{*component}": [{"plugin": "b"}]}}
    )
    for name in ("c.json", "<stdin>"):
        assert read(text, name).plugins == {"b": BuiltinPluginConfig()}
    assert read(text.encode(), "c.json").warnings == ()


def test_an_empty_configuration_has_nothing_and_the_default_retries():
    config = read("plugins: {}\nroutes: {}\n")
    assert (config.plugins, config.routes, config.retry) == ({}, (), RetryPolicy())
    assert config.warnings == ()


def test_a_workers_environment_holds_only_what_is_named_and_is_not_in_its_repr():
    plugin = read(worker("env: {A: $TOKEN}")).plugins["py"]
    assert isinstance(plugin, StdioPluginConfig)
    assert plugin.env == {"A": "topsecret"}
    assert "topsecret" not in repr(plugin)
    plugin = read(worker()).plugins["py"]
    assert isinstance(plugin, StdioPluginConfig)
    assert (plugin.env, plugin.args, plugin.working_directory) == ({}, (), Path("/flows"))


def test_an_absolute_working_directory_is_taken_as_it_is():
    plugin = read("workingDirectory: /srv\n" + worker()).plugins["py"]
    assert isinstance(plugin, StdioPluginConfig)
    assert plugin.working_directory == Path("/srv")


@pytest.mark.parametrize(
    ("text", "backoff"),
    [
        ("{transportMaxRetries: 0}", Fibonacci()),
        ("{transportMaxRetries: 0, backoff: null}", Fibonacci()),
        ("{transportMaxRetries: 0, backoff: {type: fibonacci}}", Fibonacci()),
        (
            "{transportMaxRetries: 0, backoff: {type: fibonacci, minDelayMs: 5, maxDelayMs: 10}}",
            Fibonacci(min_delay_s=0.005, max_delay_s=0.01),
        ),
        ("{transportMaxRetries: 0, backoff: {type: exponential}}", Exponential()),
        ("{transportMaxRetries: 0, backoff: {type: exponential, factor: 3}}", Exponential(factor=3)),
        ("{transportMaxRetries: 0, backoff: {type: constant}}", Constant()),
        ("{transportMaxRetries: 0, backoff: {type: constant, delayMs: 0}}", Constant(delay_s=0)),
    ],
)
def test_every_backoff_is_read_with_its_defaults(text, backoff):
    config = read(retry(text))
    assert config.retry == RetryPolicy(transport_max_retries=0, backoff=backoff)
    assert config.warnings == ()


def test_the_default_configuration_routes_the_builtin_components():
    router = Router(DEFAULT_CONFIG.routes)
    assert router.resolve("/builtin/eval", {}) == Target("builtin", "/eval")
    assert DEFAULT_CONFIG.plugins == {"builtin": BuiltinPluginConfig()}
    assert DEFAULT_CONFIG.retry == RetryPolicy()


# ---- what has no effect ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("«stateStore: {type: sqlite, databaseUrl: x}", "blobs and runs are kept in memory"),
        ("«storageConfig: {type: sqlite, databaseUrl: x}", "blobs and runs are kept in memory"),
        ("«leaseManager: {type: etcd, endpoints: []}", "this runtime shares its runs with no other"),
        ("«recovery: {enabled: true}", "runs that were interrupted are not taken up again"),
        ("«qqq: x", "there is no such key here"),
        ("«working_dir: x", "there is no such key here"),
        ("«working_directory: x", 'there is no such key here; did you mean "workingDirectory"?'),
    ],
)
def test_a_key_that_has_no_effect_is_warned_of_with_what_is_done_instead(line, message):
    key = line.partition(":")[0].removeprefix("«")
    assert_warned(f"plugins: {{}}\n{line}\nroutes: {{}}\n", f"{key}: is ignored: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            worker("«arg: [x]"),
            'plugins.py.arg: is ignored: there is no such key here; did you mean "args"?',
        ),
        (worker("«healthCheck: {}"), "plugins.py.healthCheck: is ignored: there is no such key here"),
        (
            rule("{plugin: py, «params: {}}"),
            "routes./r/{component}[0].params: is ignored: there is no such key here",
        ),
        (
            rule("{plugin: py, conditions: [{path: a, value: 1, «op: eq}]}"),
            "routes./r/{component}[0].conditions[0].op: is ignored: there is no such key here",
        ),
        (retry("{«maxRetries: 1}"), "retry.maxRetries: is ignored: there is no such key here"),
        (
            retry("{backoff: {type: constant, «delayMS: 1}}"),
            'retry.backoff.delayMS: is ignored: there is no such key here; did you mean "delayMs"?',
        ),
        (
            retry("{backoff: {type: constant, «minDelayMs: 1}}"),
            "retry.backoff.minDelayMs: is ignored: there is no such key here",
        ),
        (
            retry("{backoff: {type: fibonacci, minDelayMs: «20000}}"),
            "retry.backoff.minDelayMs: maxDelayMs is less than minDelayMs: every delay is 10 s",
        ),
        (
            retry("{backoff: {type: exponential, maxDelayMs: «500}}"),
            "retry.backoff.maxDelayMs: maxDelayMs is less than minDelayMs: every delay is 0.5 s",
        ),
        (
            "plugins: {«b: {type: builtin}}\nroutes: {}\n",
            "plugins.b: no route leads to this plugin",
        ),
        ("plugins: {}\nroutes:\n  «/x: []\n", "routes./x: has no rules, so it leads nowhere"),
    ],
)
def test_what_has_no_effect_is_warned_of_with_its_place(text, message):
    assert_warned(text, message)


def test_warnings_come_in_the_order_of_the_file():
    warnings = read("a1: 1\nplugins: {}\nb2: 1\nroutes: {}\nc3: 1\n").warnings
    assert [warning.split(":")[1] for warning in warnings] == ["1", "3", "5"]


@pytest.mark.parametrize(
    "line",
    [
        "storageConfig: {type: inMemory}",
        "leaseManager: {type: noOp}",
        "recovery: {enabled: false}",
        "blobApi: {enabled: false}",
        "stateStore: null",
        "retry: null",
        "workingDirectory: null",
    ],
)
def test_what_asks_for_what_happens_anyway_is_not_warned_of(line):
    assert read(f"plugins: {{}}\nroutes: {{}}\n{line}\n").warnings == ()


# ---- what is refused ------------------------------------------------------------------------------------

NOT_YAML = "found character '@' that cannot start any token"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("«", "the text is empty"),
        ("«# nothing\n", "the text is empty"),
        ("«null\n", "must be an object with keys, not null"),
        ("\n«- 1\n", "must be an object with keys, not an array"),
        (
            "plugins: {}\nroutes: {}\n«plugins: {}\n",
            'plugins: the key "plugins" is already in line 1',
        ),
        (
            "plugins: {}\nroutes: [\n«",
            "while parsing a flow node, expected the node content, but found '<stream end>'",
        ),
        (
            "plugins: {}\nroutes: «@x\n",
            f"while scanning for the next token, {NOT_YAML}; put the text in quotes",
        ),
    ],
)
def test_text_that_is_no_configuration_is_refused_with_its_place(text, message):
    assert_refused(text, message)


def test_bytes_that_are_not_utf_8_are_refused_with_their_place():
    message = "byte 0xff at offset 20 is not UTF-8 (invalid start byte); save the text as UTF-8"
    assert refused(b"plugins: {}\nroutes: \xff\n") == [f"c.yml:2:9: {message}"]


def test_broken_json_is_refused_with_its_place():
    message = "this is not JSON: there is a comma after the last member"
    assert refused('{"plugins": {},\n "routes": {},}', "c.json") == [f"c.json:2:14: {message}"]


def test_what_must_be_there_is_asked_for_by_its_key():
    assert refused("retry: {}\n") == ["c.yml:1:1: plugins: is missing", "c.yml:1:1: routes: is missing"]
    assert_refused(
        "«plugin: {a: {type: builtin}}\nroutes: {/a: [{plugin: a}]}\n",
        'plugins: is missing; is "plugin" meant to be it?',
    )
    assert_refused(
        "plugins: {}\nroutes: {/a: [{plugin: «a}]}\n",
        'routes./a[0].plugin: no plugin "a" is configured; there are: none',
    )
    assert_refused("plugins: {«a: {}}\nroutes: {/a: [{plugin: a}]}\n", "plugins.a.type: is missing")
    assert_refused(
        "plugins: {a: {type: builtin}}\nroutes: {/a: [«{plugn: a}]}\n",
        'routes./a[0].plugin: is missing; is "plugn" meant to be it?',
    )


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("p: «7", "plugins.p: must be an object with keys, not a number"),
        ("«p: null", "plugins.p: must be an object with keys, not null"),
        ("p: {type: «1}", "plugins.p.type: must be a string, not a number; put it in quotes"),
        ("p: {type: «moc}", 'plugins.p.type: "moc" is unknown; did you mean "mock"?'),
        (
            "p: {type: «grpc}",
            'plugins.p.type: "grpc" is unknown; write one of stepflow, builtin, mock, mcp',
        ),
        ("«p: {type: stepflow}", "plugins.p.command: is missing"),
        (
            "«p: {type: stepflow, comand: x}",
            'plugins.p.command: is missing; is "comand" meant to be it?',
        ),
        ("«p: {type: stepflow, transport: stdio}", "plugins.p.command: is missing"),
        ("«p: {type: stepflow, transport: stdio, url: x}", "plugins.p.command: is missing"),
        (
            "p: {type: stepflow, transport: «studio}",
            'plugins.p.transport: "studio" is unknown; did you mean "stdio"?',
        ),
        (
            "p: {type: stepflow, transport: «[]}",
            "plugins.p.transport: must be a string, not an array",
        ),
    ],
)
def test_a_plugin_that_cannot_be_understood_is_refused(plugin, message):
    assert_refused(f"plugins:\n  {plugin}\nroutes: {{/p: [{{plugin: p}}]}}\n", message)


UNSET = (
    "the environment variable NOPE is not set: set it, or give a default as in ${NOPE:-default}; "
    "a dollar sign itself is written $$"
)
NO_NAME = "at offset 1: no variable's name follows the dollar sign; a dollar sign itself is written $$"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("args: «x", "args: must be a list, not a string"),
        ("args: [a, «80]", "args[1]: must be a string, not a number; put it in quotes"),
        ("args: [«null]", "args[0]: must be a string, not null"),
        ('args: [«"\\0"]', "args[0]: holds a NUL character, which cannot be passed to a process"),
        ("args: [ok, «a$]", f"args[1]: {NO_NAME}"),
        ("args: [ok, «--x=$NOPE]", f"args[1]: {UNSET}"),
        ("env: «[A=1]", "env: must be an object with keys, not an array"),
        ("env: «''", "env: must be an object with keys, not a string"),
        ("env: {A: «true}", "env.A: must be a string, not a boolean; put it in quotes"),
        ("env: {«A: }", "env.A: must be a string, not null"),
        ("env: {«A=topsecret}", "env: this is no variable's name: write NAME: value"),
        ("env: {«'': x}", "env: this is no variable's name: write NAME: value"),
        ('env: {A: «"\\0"}', "env.A: holds a NUL character, which cannot be passed to a process"),
        ("env: {A: «$NOPE}", f"env.A: {UNSET}"),
        ("env: {A: «x$}", f"env.A: {NO_NAME}"),
        ("env: {A: «!!int x}", "env.A: this is not a plain string; put it in quotes"),
        ("env: {A: x, «A: y}", 'env.A: the key "A" is already in line 6'),
    ],
)
def test_a_worker_that_cannot_be_started_as_written_is_refused(more, message):
    assert_refused(worker(more), f"plugins.py.{message}")


def test_a_command_is_substituted_and_must_name_something():
    assert_refused(worker(command="«$EMPTY"), "plugins.py.command: is empty: name the program to start")
    assert_refused(worker(command="«$NOPE"), f"plugins.py.command: {UNSET}")
    assert_refused(worker(command="«[x]"), "plugins.py.command: must be a string, not an array")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{plugin: «pi}", '.plugin: no plugin "pi" is configured; did you mean "py"?'),
        ("{plugin: «other}", '.plugin: no plugin "other" is configured; there are: py'),
        ("{plugin: «7}", ".plugin: must be a string, not a number; put it in quotes"),
        ("«{}", ".plugin: is missing"),
        ("«py", ": must be an object with keys, not a string"),
        (
            "{plugin: py, component: «'{comp}'}",
            ".component: {comp} is not captured by /r/{component}, which captures {component}",
        ),
        ("{plugin: py, component: «[x]}", ".component: must be a string, not an array"),
        ("{plugin: py, conditions: «{}}", ".conditions: must be a list, not an object"),
        ("{plugin: py, conditions: [«x]}", ".conditions[0]: must be an object with keys, not a string"),
        ("{plugin: py, conditions: [«{path: a}]}", ".conditions[0].value: is missing"),
        ("{plugin: py, conditions: [«{value: a}]}", ".conditions[0].path: is missing"),
        (
            "{plugin: py, conditions: [{path: «'$.a[*]', value: a}]}",
            ".conditions[0].path: wildcards are not supported (at character 4): name the fields one by one",
        ),
        (
            "{plugin: py, conditions: [{path: «1, value: a}]}",
            ".conditions[0].path: must be a string, not a number; put it in quotes",
        ),
        ("{plugin: py, componentAllow: «/add}", ".componentAllow: must be a list, not a string"),
        (
            "{plugin: py, componentDeny: [«1]}",
            ".componentDeny[0]: must be a string, not a number; put it in quotes",
        ),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(text, message):
    assert_refused(rule(text), f"routes./r/{{component}}[0]{message}")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("component_deny", 'did you mean "componentDeny"?'),
        ("componentAllowed", 'did you mean "componentAllow"?'),
        ("condition", 'did you mean "conditions"?'),
        ("deny", "write one of conditions, componentAllow, componentDeny"),
        ("allowList", "write one of conditions, componentAllow, componentDeny"),
    ],
)
def test_a_misspelled_key_that_would_shut_components_out_is_refused_and_not_ignored(key, hint):
    message = f"routes./r/{{component}}[0].{key}: is no key of a rule; {hint}"
    assert_refused(rule(f"{{plugin: py, «{key}: [x]}}"), message)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ("«[]", "routes: must be an object with keys, not an array"),
        ("{/x: «{plugin: b}}", "routes./x: must be a list, not an object"),
        ("{«/x: }", "routes./x: must be a list, not null"),
        (
            "{«/a//b: [{plugin: b}]}",
            "routes./a//b: component path '/a//b' has an empty segment: leave out the extra slash",
        ),
        (
            '{"/m/{a}": [{plugin: b}], «"/m/{b}": [{plugin: b}]}',
            "routes./m/{b}: component path '/m/{b}' fits the same paths as '/m/{a}', registered before",
        ),
    ],
)
def test_routes_that_cannot_be_used_are_refused(routes, message):
    assert_refused(f"plugins: {{b: {{type: builtin}}}}\nroutes: {routes}\n", message)


COUNT = "must be a whole number from 0 to 4294967295"
DELAY = "must be a whole number from 0 to 18446744073709551615"
FACTOR = "must be a number from 1 to 4294967295: delays do not shrink"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("«[]", "retry: must be an object with keys, not an array"),
        ("{transportMaxRetries: «-1}", f"retry.transportMaxRetries: {COUNT}"),
        ("{transportMaxRetries: «1.5}", f"retry.transportMaxRetries: {COUNT}"),
        ("{transportMaxRetries: «true}", f"retry.transportMaxRetries: {COUNT}"),
        ("{transportMaxRetries: «4294967296}", f"retry.transportMaxRetries: {COUNT}"),
        ("{backoff: «1}", "retry.backoff: must be an object with keys, not a number"),
        ("{«backoff: {}}", "retry.backoff.type: is missing"),
        (
            "{backoff: {type: «fibonaci}}",
            'retry.backoff.type: "fibonaci" is unknown; did you mean "fibonacci"?',
        ),
        (
            "{backoff: {type: «linear}}",
            'retry.backoff.type: "linear" is unknown; write one of fibonacci, exponential, constant',
        ),
        ("{backoff: {type: «1}}", "retry.backoff.type: must be a string, not a number; put it in quotes"),
        (
            "{backoff: {type: constant, delayMs: «18446744073709551616}}",
            f"retry.backoff.delayMs: {DELAY}",
        ),
        ("{backoff: {type: fibonacci, minDelayMs: «x}}", f"retry.backoff.minDelayMs: {DELAY}"),
        ("{backoff: {type: exponential, maxDelayMs: «-5}}", f"retry.backoff.maxDelayMs: {DELAY}"),
        ("{backoff: {type: exponential, factor: «0.5}}", f"retry.backoff.factor: {FACTOR}"),
        ("{backoff: {type: exponential, factor: «'2'}}", f"retry.backoff.factor: {FACTOR}"),
    ],
)
def test_retries_that_cannot_be_done_are_refused(text, message):
    assert_refused(retry(text), message)


def test_a_working_directory_is_a_string():
    assert_refused(
        "workingDirectory: «7\nplugins: {}\nroutes: {}\n",
        "workingDirectory: must be a string, not a number; put it in quotes",
    )
    assert_refused(
        'workingDirectory: «"\\0"\nplugins: {}\nroutes: {}\n',
        "workingDirectory: holds a NUL character, which no directory's name does",
    )


def test_everything_that_is_wrong_is_in_one_error_in_the_order_of_the_file():
    lines = refused(
        """\
routes:
  /a//b: [{plugin: nobody}]
plugins:
  p: {type: stepflow, transport: stdio, args: [1, $NOPE]}
  q: {type: }
retry: 1
retry: {backoff: {type: x}}
"""
    )
    assert [line.partition(": ")[0] for line in lines] == [
        "c.yml:2:3",
        "c.yml:2:20",
        "c.yml:4:3",
        "c.yml:4:48",
        "c.yml:4:51",
        "c.yml:5:3",
        "c.yml:7:1",
        "c.yml:7:25",
    ]


def test_an_error_for_a_file_that_is_wrong_everywhere_stays_readable():
    plugins = "".join(f"  p{n}: {n}\n" for n in range(1000))
    lines = refused(f"plugins:\n{plugins}routes: {{}}\n")
    assert len(lines) == 101
    assert lines[-1] == "and 900 more"


# ---- secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "!!int topsecret",
        "!topsecret x",
        "!topsecret!x y",
        "*topsecret",
        "{topsecret: }",
        "[topsecret",
        '"topsecret',
        '"\\q topsecret"',
        "'topsecret' topsecret",
        "topsecret: topsecret",
        "@topsecret",
        "%topsecret",
        "|topsecret",
        "topsecret${",
        "topsecret$",
        "${TOKEN}$NOPE",
        "${EMPTY:-${TOKEN}}${",
        "${NOPE:topsecret",
        "$TOKEN\n    topsecret",
        "$TOKEN\n   - topsecret",
    ],
)
def test_no_value_of_an_environment_is_in_an_error(value):
    assert_secret(f"env:\n      A: {value}")


@pytest.mark.parametrize(
    "env", ["topsecret", "[TOKEN=topsecret]", "{TOKEN=topsecret}", "{<<: topsecret}", "{<<: [topsecret]}"]
)
def test_no_value_is_in_an_error_where_the_environment_is_not_written_as_one(env):
    assert_secret(f"env: {env}")


def assert_secret(more):
    with pytest.raises(ConfigError) as raised:
        read(worker(more))
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


@given(st.text(st.characters(exclude_characters="${\n\r\x85\u2028\u2029"), max_size=6), st.text(max_size=6))
def test_no_value_is_in_an_error_whatever_stands_around_it(before, after):
    with pytest.raises(ConfigError) as raised:
        read(worker(f"env:\n      A: {before}topsecret{after}\n      B: 1"))
    assert "topsecret" not in str(raised.value)


# ---- files ----------------------------------------------------------------------------------------------


def test_a_file_is_read_and_its_directory_is_where_workers_start(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "stepflow-config.yml"
    path.write_text(worker(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for given_path in (path, str(path), "sub/stepflow-config.yml"):
        config = read_config_file(given_path, environ={})
        assert config.source == str(given_path)
        plugin = config.plugins["py"]
        assert isinstance(plugin, StdioPluginConfig)
        assert plugin.working_directory == tmp_path / "sub"


def test_a_file_that_cannot_be_read_is_a_configuration_error_with_its_name(tmp_path):
    missing = tmp_path / "nope.yml"
    for path, why in [
        (missing, "No such file or directory"),
        (tmp_path, "Is a directory"),
        ("a\0b", "embedded null byte"),
    ]:
        with pytest.raises(ConfigError) as raised:
            read_config_file(path, environ={})
        assert str(raised.value) == f"{path}: the configuration cannot be read: {why}"
        assert raised.value.place == str(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read_whole(tmp_path):
    path = tmp_path / "stepflow-config.yml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="bytes are more than the"):
        read_config_file(path, environ={})


def test_an_empty_file_and_one_in_another_encoding_are_refused_with_their_place(tmp_path):
    path = tmp_path / "stepflow-config.yml"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=":1:1: the text is empty"):
        read_config_file(path, environ={})
    path.write_bytes("plugins: {}".encode("utf-16"))
    with pytest.raises(ConfigError, match="the text is UTF-16; save it as UTF-8"):
        read_config_file(path, environ={})


def test_the_flows_directory_is_looked_into_before_the_current_one(tmp_path):
    flows, here = tmp_path / "flows", tmp_path / "here"
    flows.mkdir()
    here.mkdir()
    assert find_config(flows / "flow.yml", here) is None
    assert find_config(None, here) is None
    (here / "stepflow_config.yaml").touch()
    assert find_config(flows / "flow.yml", here) == here / "stepflow_config.yaml"
    assert find_config(None, here) == here / "stepflow_config.yaml"
    (flows / "stepflow-config.yml").touch()
    assert find_config(flows / "flow.yml", here) == flows / "stepflow-config.yml"
    assert find_config(Path("../flows/flow.yml"), here) == here / "../flows" / "stepflow-config.yml"


@pytest.mark.parametrize("name", FILE_NAMES)
def test_each_of_the_four_names_is_found(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "stepflow-config.json").touch()
    assert find_config(tmp_path / "flow.yml", tmp_path) == tmp_path / name


def test_two_configurations_in_one_directory_are_refused(tmp_path):
    for name in ("stepflow_config.yml", "stepflow-config.yaml"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError) as raised:
        find_config(None, tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: there are stepflow-config.yaml and stepflow_config.yml: remove all but one, "
        "or name the one to use"
    )


def test_a_dangling_link_is_found_so_that_reading_it_says_so(tmp_path):
    os.symlink("nowhere", tmp_path / "stepflow-config.yml")
    found = find_config(None, tmp_path)
    assert found is not None
    with pytest.raises(ConfigError, match="No such file"):
        read_config_file(found, environ={})


# ---- anything -------------------------------------------------------------------------------------------

keys = st.sampled_from(
    [
        "plugins",
        "routes",
        "retry",
        "type",
        "transport",
        "command",
        "args",
        "env",
        "plugin",
        "component",
        "conditions",
        "path",
        "value",
        "componentAllow",
        "componentDeny",
        "backoff",
        "factor",
        "delayMs",
        "minDelayMs",
        "maxDelayMs",
        "workingDirectory",
        "transportMaxRetries",
        "stateStore",
        "/x/{*c}",
        "p",
        "q=",
        "",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["builtin", "stepflow", "stdio", "exponential", "constant", "p", "$X", "${", "{c}", "$.a"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
plugins = st.dictionaries(
    st.sampled_from(["p", "q"]),
    values
    | st.fixed_dictionaries(
        {"type": st.just("stepflow"), "transport": st.just("stdio"), "command": st.just("w") | values},
        optional={"args": values, "env": values},
    ),
    max_size=2,
)
rules = values | st.fixed_dictionaries(
    {"plugin": st.just("p") | values},
    optional={"component": values, "conditions": values, "componentAllow": values},
)
routes = st.dictionaries(
    st.sampled_from(["/x/{*c}", "/{a}/{b}", "/{"]), values | st.lists(rules, max_size=2), max_size=2
)
backoffs = st.fixed_dictionaries(
    {"type": st.sampled_from(["constant", "fibonacci", "exponential"])},
    optional={"delayMs": scalars, "minDelayMs": scalars, "maxDelayMs": scalars, "factor": scalars},
)
configurations = values | st.fixed_dictionaries(
    {"plugins": plugins | values, "routes": routes | values},
    optional={
        "retry": values | st.fixed_dictionaries({"backoff": backoffs | values}),
        "workingDirectory": values,
    },
)


def usable_or_refused(text, name):
    place = name
    config = DEFAULT_CONFIG
    try:
        config = read(text, name, {"X": "x"})
    except ConfigError as exc:
        place = exc.place
    assert place.startswith(name)
    Router(config.routes)
    assert {rule.plugin for route in config.routes for rule in route.rules} <= config.plugins.keys()


@given(configurations)
def test_any_json_is_a_usable_configuration_or_refused_with_a_place(value):
    usable_or_refused(json.dumps(value), "c.json")
    usable_or_refused(json.dumps(value), "c.yml")


USABLE = worker("env: {A: '${X:-y}'}\n    args: [a, $X]") + "retry: {backoff: {type: constant}}\n"


@given(st.text() | st.binary())
def test_any_text_is_a_usable_configuration_or_refused_with_a_place(text):
    usable_or_refused(text, "c.yml")


@given(st.data())
def test_a_configuration_with_a_slip_of_the_pen_is_usable_or_refused_with_a_place(data):
    start = data.draw(st.integers(0, len(USABLE)))
    end = data.draw(st.integers(start, min(start + 12, len(USABLE))))
    slip = data.draw(st.text(max_size=3) | st.text("{}[]:,-#&*!|>'\"%@`$ \n\t", max_size=4))
    usable_or_refused(USABLE[:start] + slip + USABLE[end:], "c.yml")
