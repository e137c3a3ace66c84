"""Workers over HTTP in a configuration: what is read, what is warned of, what is refused, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio import Worker, open_runtime
from stepflow_trio.errors import ConfigError
from stepflow_trio.runtime.config import (
    BlobApiConfig,
    Config,
    HttpProcessPluginConfig,
    RemotePluginConfig,
    read_config,
    read_config_file,
)
from stepflow_trio.runtime.plugin_config import ClientTls, HealthCheck, is_this_machine

TOKEN = "0123456789abcdef0123"  # noqa: S105 — nobody's
ENVIRON = {"PYTHON": "/usr/bin/python3", "TOKEN": TOKEN, "SHORT": "abc", "HOST": "worker.internal"}


def read(text: str, **more: Any) -> Config:
    return read_config(text, name="c.yml", directory=Path("/flows"), environ=ENVIRON, **more)


def plugin(text: str) -> str:
    return f"plugins:\n  w: {text}\nroutes:\n  /w/{{*component}}: [{{plugin: w}}]\n"


def blob_api(text: str) -> str:
    return f"plugins: {{}}\nroutes: {{}}\nblobApi: {text}\n"


def marked(text: str) -> tuple[str, str]:
    """A text without the « in it, and where that stood."""
    before, _, after = text.partition("«")
    return before + after, f"c.yml:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def assert_refused(text: str, message: str) -> None:
    text, place = marked(text)
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert str(raised.value) == f"{place}: {message}"


def assert_warned(text: str, message: str) -> None:
    text, place = marked(text)
    assert read(text).warnings == (f"{place}: {message}",)


def remote(text: str) -> RemotePluginConfig:
    config = read(plugin(text))
    assert config.warnings == ()
    read_plugin = config.plugins["w"]
    assert isinstance(read_plugin, RemotePluginConfig)
    return read_plugin


# ---- what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["", "transport: http, "])
def test_a_command_without_another_transport_is_a_worker_over_http(transport: str) -> None:
    config = read(
        "workingDirectory: workers\n"
        + plugin(
            "{type: stepflow, "
            + transport
            + "command: $PYTHON, args: [w.py, --port=0], env: {A: $TOKEN}, "
            + "healthCheck: {path: /ready, timeoutMs: 5000, retryDelayMs: 50}, session: never}"
        )
    )
    assert config.warnings == ()
    assert config.plugins["w"] == HttpProcessPluginConfig(
        command="/usr/bin/python3",
        args=("w.py", "--port=0"),
        env={"A": TOKEN},
        working_directory=Path("/flows/workers"),
        health_check=HealthCheck(path="/ready", timeout_s=5.0, retry_delay_s=0.05),
        session="never",
    )
    assert TOKEN not in repr(config)


def test_a_worker_s_health_is_asked_for_as_the_public_runtimes_do_it() -> None:
    config = read(plugin("{type: stepflow, command: w}"))
    assert config.plugins["w"] == HttpProcessPluginConfig(command="w", working_directory=Path("/flows"))
    assert HealthCheck() == HealthCheck(path="/health", timeout_s=60.0, retry_delay_s=0.1)


def test_a_url_is_a_worker_that_somebody_else_has_started() -> None:
    assert remote("{type: stepflow, url: 'http://localhost:8080'}") == RemotePluginConfig(
        urls=("http://localhost:8080/",)
    )
    assert remote("{type: stepflow, transport: http, url: 'HTTPS://$HOST/base', session: always}") == (
        RemotePluginConfig(urls=("https://worker.internal/base",), session="always")
    )


def test_several_urls_are_one_plugin() -> None:
    found = remote(
        "{type: stepflow, urls: ['http://127.0.0.1:1', 'http://$HOST:2'], healthCheck: {path: /up}}"
    )
    assert found.urls == ("http://127.0.0.1:1/", "http://worker.internal:2/")
    assert found.health_check.path == "/up"


def test_a_token_is_in_a_file_or_in_the_environment_and_never_shown() -> None:
    found = remote("{type: stepflow, url: 'https://h', bearerTokenEnv: TOKEN}")
    assert found.bearer is not None
    assert found.bearer.current().reveal() == TOKEN
    assert TOKEN not in repr(found)
    found = remote("{type: stepflow, url: 'https://h', bearerTokenFile: secrets/$HOST}")
    assert found.bearer_file == Path("/flows/secrets/worker.internal")


def test_files_for_tls_count_from_the_working_directory() -> None:
    text = "{type: stepflow, url: 'https://h', tls: {ca: ca.pem, certificate: c.pem, privateKey: /etc/k.pem}}"
    assert remote(text).tls == ClientTls(
        ca=Path("/flows/ca.pem"), certificate=Path("/flows/c.pem"), private_key=Path("/etc/k.pem")
    )


def test_the_blob_api_is_read_and_has_defaults() -> None:
    assert read("plugins: {}\nroutes: {}\n").blob_api == BlobApiConfig()
    assert BlobApiConfig() == BlobApiConfig(
        enabled=None, url=None, blob_threshold_bytes=1_048_576, bind="127.0.0.1:0", allow_insecure_bind=False
    )
    text = "{enabled: true, url: 'https://$HOST/blobs/', blobThreshold: 0, bind: '[::1]:0'}"
    config = read(blob_api(text))
    assert config.warnings == ()
    assert config.blob_api == BlobApiConfig(
        enabled=True, url="https://worker.internal/blobs", blob_threshold_bytes=0, bind="[::1]:0"
    )
    config = read(blob_api("{url: 'http://h', bind: '0.0.0.0:7840', allowInsecureBind: true}"))
    assert config.blob_api.allow_insecure_bind
    found = read(blob_api("{bearerTokenEnv: TOKEN}")).blob_api
    assert found.bearer is not None
    assert found.bearer.current().reveal() == TOKEN
    assert TOKEN not in repr(found)
    assert read(blob_api("{bearerTokenFile: t}")).blob_api.bearer_file == Path("/flows/t")


@pytest.mark.parametrize(
    "text",
    [
        "{enabled: false}",
        "{enabled: false, bind: '0.0.0.0:80'}",
        "{}",
        "null",
        "{enabled: null, url: null, bind: null}",
    ],
)
def test_a_blob_api_of_which_little_is_said_warns_of_nothing(text: str) -> None:
    assert read(blob_api(text)).warnings == ()


def test_routes_may_lead_to_plugins_that_are_given_beside_the_file(tmp_path: Path) -> None:
    text = "plugins: {b: {type: builtin}}\nroutes: {/x: [{plugin: own}], /b: [{plugin: b}]}\n"
    assert [rule.plugin for route in read(text, other_plugins=["own"]).routes for rule in route.rules] == [
        "own",
        "b",
    ]
    with pytest.raises(ConfigError, match='no plugin "own" is configured'):
        read(text)
    with pytest.raises(ConfigError, match='no plugin "own" is configured; did you mean "owl"'):
        read(text, other_plugins=["owl"])
    path = tmp_path / "stepflow-config.yml"
    path.write_text(text, encoding="utf-8")
    assert len(read_config_file(path, environ={}, other_plugins={"own"}).routes) == 2


async def test_a_runtime_s_own_workers_are_where_the_routes_of_the_file_lead_to_them(tmp_path: Path) -> None:
    path = tmp_path / "stepflow-config.yml"
    path.write_text("plugins: {}\nroutes: {'/mine/{*c}': [{plugin: own}]}\n", encoding="utf-8")
    worker = Worker()
    worker.add_component(lambda: 1, path="/one", inline=True)
    async with open_runtime(path, workers={"own": worker}) as runtime:
        assert [component.path for component in await runtime.list_components()] == ["/mine/one"]
    with pytest.raises(ConfigError, match='no plugin "own" is configured; there are: other'):
        async with open_runtime(path, workers={"other": worker}):
            raise AssertionError("opened")


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("app.localhost", True),
        ("10.0.0.1", False),
        ("worker", False),
        ("localhost.example", False),
    ],
)
def test_only_loopback_names_are_this_machine_for_certain(host: str, is_it: bool) -> None:
    assert is_this_machine(host) is is_it


# ---- what is warned of ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            plugin("{type: stepflow, command: w, «healthcheck: {}}"),
            'plugins.w.healthcheck: is ignored: there is no such key here; did you mean "healthCheck"?',
        ),
        (
            plugin("{type: stepflow, command: w, healthCheck: {«timeout: 5}}"),
            'plugins.w.healthCheck.timeout: is ignored: there is no such key here; did you mean "timeoutMs"?',
        ),
        (
            plugin("{type: stepflow, command: w, «bearerTokenEnv: TOKEN}"),
            "plugins.w.bearerTokenEnv: is ignored: there is no such key here",
        ),
        (
            plugin("{type: stepflow, url: 'http://h', «timeout: 5}"),
            "plugins.w.timeout: is ignored: there is no such key here",
        ),
        (
            plugin("{type: stepflow, url: 'http://h', healthCheck: {«timeoutMs: 5}}"),
            "plugins.w.healthCheck.timeoutMs: is ignored: there is no such key here",
        ),
        (
            plugin("{type: stepflow, urls: ['http://localhost', 'http://h'], bearerTokenEnv: «TOKEN}"),
            "plugins.w.bearerTokenEnv: the token travels unencrypted to h: use https://",
        ),
        (
            blob_api("{«treshold: 5}"),
            "blobApi.treshold: is ignored: there is no such key here",
        ),
        (
            blob_api("{«blobTreshold: 5}"),
            'blobApi.blobTreshold: is ignored: there is no such key here; did you mean "blobThreshold"?',
        ),
        (
            blob_api("{bind: «'0.0.0.0:80', allowInsecureBind: true}"),
            "blobApi.bind: workers are told of a loopback address: say in blobApi.url what they reach",
        ),
    ],
)
def test_what_has_no_effect_or_is_no_good_idea_is_warned_of(text: str, message: str) -> None:
    if "bearerTokenEnv: «" in text:
        text = text.replace("bearerTokenEnv: «TOKEN", "«bearerTokenEnv: TOKEN")
    assert_warned(text, message)


# ---- what is refused ------------------------------------------------------------------------------------

REFUSED = (
    "a token has no place in this file, which is copied and shown: put it into a file that "
    "bearerTokenFile names, or into an environment variable that bearerTokenEnv names"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{type: stepflow, url: «7}", "url: must be a string, not a number; put it in quotes"),
        ("{type: stepflow, urls: «'http://h'}", "urls: must be a list, not a string"),
        ("{type: stepflow, urls: «[]}", "urls: is empty: name where the workers are"),
        ("{type: stepflow, urls: ['http://h', «'http://H/']}", "urls[1]: this URL stands here twice"),
        (
            "{type: stepflow, urls: ['http://h'], «url: 'http://i'}",
            "url: there is urls as well: put all of them there",
        ),
        (
            "{type: stepflow, url: 'http://h', «command: w}",
            "command: a worker at a URL is not started here: remove this, or the URL",
        ),
        ("{type: stepflow, url: 'http://h', «bearerToken: topsecret}", f"bearerToken: {REFUSED}"),
        ("{type: stepflow, url: 'http://h', «api_key: topsecret}", f"api_key: {REFUSED}"),
        ("{type: stepflow, url: 'http://h', «Authorization: topsecret}", f"Authorization: {REFUSED}"),
        (
            "{type: stepflow, url: 'http://h', bearerTokenEnv: «$TOKEN}",
            "bearerTokenEnv: must be the name of an environment variable, such as WORKER_TOKEN",
        ),
        (
            "{type: stepflow, url: 'https://h', bearerTokenEnv: «GONE}",
            "bearerTokenEnv: environment variable GONE: it is not set, but is to hold the bearer token",
        ),
        (
            "{type: stepflow, url: 'https://h', bearerTokenFile: a, «bearerTokenEnv: TOKEN}",
            "bearerTokenEnv: there is bearerTokenFile as well: only one of them can be used",
        ),
        (
            "{type: stepflow, url: 'https://h', bearerTokenFile: «''}",
            "bearerTokenFile: is empty: name the file",
        ),
        (
            "{type: stepflow, urls: ['https://h', 'http://i/x'], «tls: {ca: x}}",
            "tls: is for https://, but http://i would be reached without: write https://, or remove it",
        ),
        (
            "{type: stepflow, url: 'https://h', tls: {«certificate: c.pem}}",
            "tls.certificate: needs privateKey beside it",
        ),
        (
            "{type: stepflow, url: 'https://h', tls: {«privateKey: c.pem}}",
            "tls.privateKey: needs certificate beside it",
        ),
        ("{type: stepflow, url: 'https://h', tls: «true}", "tls: must be an object with keys, not a boolean"),
        (
            "{type: stepflow, url: 'http://h', session: «sometimes}",
            'session: "sometimes" is unknown; write one of auto, never, always',
        ),
        (
            "{type: stepflow, command: w, healthCheck: {path: «health}}",
            'healthCheck.path: "health" is no path: it begins with / and has no spaces, such as /health',
        ),
        (
            "{type: stepflow, command: w, healthCheck: {timeoutMs: «-1}}",
            "healthCheck.timeoutMs: must be a whole number from 0 to 86400000",
        ),
        (
            "{type: stepflow, command: w, healthCheck: «/up}",
            "healthCheck: must be an object with keys, not a string",
        ),
    ],
)
def test_a_worker_over_http_that_cannot_be_used_as_written_is_refused(text: str, message: str) -> None:
    assert_refused(plugin(text), f"plugins.w.{message}")


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "http://", "http://h:99999", "http://h/?a=topsecret"])
def test_what_is_no_url_is_refused_where_it_stands(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(plugin(f"{{type: stepflow, url: '{url}'}}"))
    assert str(raised.value).startswith("c.yml:2:28: plugins.w.url: ")
    assert "topsecret" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "{type: stepflow, url: 'http://h', bearerToken: topsecret}",
        "{type: stepflow, url: 'http://h', bearerToken: @topsecret}",
        "{type: stepflow, url: 'http://h', bearerToken: !!int topsecret}",
        "{type: stepflow, url: 'http://h', bearerTokenEnv: topsecret!}",
        "{type: stepflow, url: 'http://user:topsecret@h'}",
        "{type: stepflow, url: 'https://h', bearerTokenEnv: SHORT, bearerToken: topsecret}",
    ],
)
def test_no_token_is_in_an_error(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(plugin(text))
    assert "topsecret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert ENVIRON["SHORT"] not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("«7", "must be an object with keys, not a number"),
        ("{enabled: «'yes'}", "enabled: must be true or false, not a string"),
        ("{blobThreshold: «-1}", "blobThreshold: must be a whole number from 0 to 4294967295"),
        ("{bind: «'8080'}", "bind: "),
        (
            "{bind: «'0.0.0.0:80', url: 'http://h'}",
            "bind: other machines reach this, and whoever does could read and write blobs: ask for a token",
        ),
        ("{bind: «'h.internal:80', url: 'http://h'}", "bind: other machines reach this"),
        ("{«token: topsecret}", f"token: {REFUSED}"),
        ("{bearerTokenEnv: «GONE}", "bearerTokenEnv: environment variable GONE: it is not set"),
        (
            "{bind: «'unix:/run/blobs'}",
            "bind: workers are told a URL, which this has not: say it in blobApi.url",
        ),
    ],
)
def test_a_blob_api_that_cannot_be_served_as_written_is_refused(text: str, message: str) -> None:
    text, place = marked(blob_api(text))
    with pytest.raises(ConfigError) as raised:
        read(text)
    separator = "." if ":" in message else ": "
    assert str(raised.value).startswith(f"{place}: blobApi{separator}{message}")


# ---- anything -------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["http://h", "https://[::1]:1/a", "$TOKEN", "TOKEN", "${", "0.0.0.0:1", "unix:/a", "fd://3"]
    )
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=4), scalars, max_size=2)
nested = st.dictionaries(
    st.sampled_from(["path", "timeoutMs", "retryDelayMs", "ca", "certificate", "privateKey", "x"]), values
)
plugins = st.dictionaries(
    st.sampled_from(
        [
            *("transport", "command", "args", "env", "url", "urls", "session", "bearerTokenFile"),
            *("bearerTokenEnv", "tls", "healthCheck", "token", "x"),
        ]
    ),
    values | nested,
    max_size=5,
)
blob_apis = st.dictionaries(
    st.sampled_from(
        [
            *("enabled", "url", "blobThreshold", "bind", "allowInsecureBind", "bearerTokenFile"),
            *("bearerTokenEnv", "password"),
        ]
    ),
    values,
    max_size=5,
)


@given(plugins, values | blob_apis)
def test_any_json_is_a_usable_configuration_or_refused_with_a_place(
    fields: dict[str, Any], of_blobs: Any
) -> None:
    configuration = {
        "plugins": {"w": {"type": "stepflow", **fields}},
        "routes": {"/w/{*c}": [{"plugin": "w"}]},
        "blobApi": of_blobs,
    }
    place, names = "c.yml:", {"w"}
    try:
        names = read(json.dumps(configuration)).plugins.keys()
    except ConfigError as exc:
        place = exc.place
    assert names == {"w"}
    assert place.startswith("c.yml:")
