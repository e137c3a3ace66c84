"""Secrets stay out of sight, and tokens come from where only their owner can read."""

from __future__ import annotations

import copy
import dataclasses
import hmac
import logging
import os
import pickle
import pprint
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from stepflow_trio.errors import ConfigError
from stepflow_trio.transports.http import bearer
from stepflow_trio.transports.http.bearer import BearerTokens, SecretStr
from stepflow_trio.transports.http.security import HttpSecurity

CANARY = "canary-0123456789abcdef"
OLD = "canary-old-0123456789abcdef"
NEW = "canary-new-0123456789abcdef"


def bears(token: str) -> bytes:
    return f"Bearer {token}".encode()


@pytest.fixture
def token_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the file of tokens anew and gives its path."""
    path = tmp_path / "tokens"

    def write(text: str | bytes, mode: int = 0o600) -> Path:
        path.touch(0o600)
        path.chmod(0o600)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    return write


# ---- secrets ----------------------------------------------------------------------------------------


def test_a_secret_is_shown_only_to_who_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = SecretStr(CANARY)
    assert secret.reveal() == CANARY
    logging.getLogger("test").warning("%s %r", secret, secret)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!s:>40}", f"{secret:x}", "%s" % secret]  # noqa: UP031 — each way of formatting
    shown += [
        pprint.pformat({"token": [secret]}),
        caplog.text,
        repr(HttpSecurity(bearer=BearerTokens(secret))),
    ]
    assert all(shown)
    assert CANARY not in "".join(shown)
    assert repr(SecretStr("")) == repr(secret), "its length shows"


@pytest.mark.parametrize("holder", [SecretStr(CANARY), BearerTokens(CANARY)])
def test_a_secret_cannot_be_pickled(holder: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(holder, protocol)


def test_a_copy_of_a_secret_is_itself_so_that_records_with_one_can_be_copied() -> None:
    @dataclasses.dataclass
    class Record:
        token: SecretStr

    secret = SecretStr(CANARY)
    assert copy.copy(secret) is secret
    assert copy.deepcopy(secret) is secret
    assert dataclasses.asdict(Record(secret)) == {"token": secret}


def test_secrets_are_equal_as_their_texts_are() -> None:
    assert SecretStr("ä") == SecretStr("ä")
    assert SecretStr("a") != SecretStr("b")
    assert SecretStr(CANARY) != CANARY
    assert len({SecretStr("a"), SecretStr("a"), SecretStr("b")}) == 2


# ---- tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "it holds no bearer token"),
        (["a" * 20, "b" * 20, "c" * 20], "3 bearer tokens are given"),
        ([""], "the bearer token has 0 characters"),
        (["canary"], "has 6 characters, but must have 16 or more"),
        (["canary-89012345"], "has 15 characters"),
        ([CANARY, "canary"], "bearer token 2 has 6 characters"),
        (["a" * 4097], "4096 or fewer"),
        ([" " * 20], "a character that no bearer token has"),
        ([CANARY + " "], "a character that no bearer token has"),
        (["canary canary canary"], "a character that no bearer token has"),
        ([CANARY + "\n"], "a character that no bearer token has"),
        ([CANARY + "\r\nx: y"], "a character that no bearer token has"),
        ([CANARY + "ä"], "a character that no bearer token has"),
        ([CANARY + "=x"], "= at its end only"),
    ],
)
def test_a_bad_token_is_refused_in_words_that_do_not_show_it(tokens: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        BearerTokens(*tokens, place="config.yml:4:7")
    assert caught.value.place == "config.yml:4:7"
    assert "canary" not in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("token", ["a" * 16, "a" * 4096, "AZaz09-._~+/AZaz09==", CANARY])
def test_a_token_of_16_to_4096_fitting_characters_is_taken(token: str) -> None:
    tokens = BearerTokens(SecretStr(token))
    assert tokens.accept(bears(token))
    assert not tokens.accept(bears(token + "a"))
    assert tokens.current() == SecretStr(token)


@pytest.mark.parametrize("given", [OLD, NEW, "wrong", ""])
def test_every_token_is_compared_in_constant_time_whatever_is_given(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def spy(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return hmac.compare_digest(left, right)

    tokens = BearerTokens(OLD, NEW)
    monkeypatch.setattr(bearer, "compare_digest", spy)
    assert tokens.accept(bears(given)) == (given in (OLD, NEW))
    assert compared == [OLD.encode(), NEW.encode()]


def test_tokens_come_from_an_environment_variable_by_its_name() -> None:
    tokens = BearerTokens.from_environment("WORKER_TOKEN", {"WORKER_TOKEN": f" {NEW}\n{OLD} "})
    assert tokens.accept(bears(OLD))
    assert tokens.accept(bears(NEW))
    assert tokens.current().reveal() == NEW
    for environ, message in [
        ({}, "environment variable WORKER_TOKEN: it is not set"),
        ({"WORKER_TOKEN": " "}, "environment variable WORKER_TOKEN: it holds no bearer token"),
        ({"WORKER_TOKEN": "canary"}, "environment variable WORKER_TOKEN: the bearer token has 6"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            BearerTokens.from_environment("WORKER_TOKEN", environ)
        assert "canary" not in str(caught.value)


def test_the_processs_own_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_TOKEN", CANARY)
    assert BearerTokens.from_environment("WORKER_TOKEN").accept(bears(CANARY))


# ---- files of tokens --------------------------------------------------------------------------------


async def test_a_file_of_tokens_is_read_again_at_most_once_a_second(
    token_file: Callable[..., Path], autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read = bearer._read_private_file

    def counted(name: str) -> list[str]:
        nonlocal reads
        reads += 1
        return read(name)

    tokens = BearerTokens.from_file(token_file(OLD + "\n"))
    monkeypatch.setattr(bearer, "_read_private_file", counted)
    assert tokens.accept(bears(OLD))
    assert not tokens.accept(bears(NEW))
    token_file(f"{NEW}\n{OLD}\n")
    await trio.sleep(0.99)
    assert not tokens.accept(bears(NEW))
    assert reads == 1
    await trio.sleep(0.01)
    assert tokens.accept(bears(NEW))
    assert tokens.accept(bears(OLD))
    assert tokens.current().reveal() == NEW
    assert reads == 2
    token_file(NEW)
    await trio.sleep(1)
    assert not tokens.accept(bears(OLD))
    assert tokens.accept(bears(NEW))


@pytest.mark.parametrize(
    ("text", "mode"),
    [("", 0o600), (NEW[:10], 0o600), (NEW, 0o644), (b"\xff\xfe" * 20, 0o600), (None, 0)],
    ids=["empty", "half written", "open to others", "no text", "missing"],
)
async def test_while_the_file_is_unusable_the_last_tokens_stay_valid_and_the_trouble_is_logged_once(
    text: str | bytes | None,
    mode: int,
    token_file: Callable[..., Path],
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = token_file(OLD)
    tokens = BearerTokens.from_file(path)
    path.unlink()
    if text is not None:
        token_file(text, mode)
    for _ in range(3):
        assert tokens.accept(bears(OLD))
        assert not tokens.accept(bears(NEW))
        await trio.sleep(1)
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "canary" not in caplog.text
    token_file(NEW)
    await trio.sleep(1)
    assert tokens.accept(bears(NEW))
    assert not tokens.accept(bears(OLD))
    path.unlink()
    await trio.sleep(1)
    assert tokens.accept(bears(NEW))
    assert len(caplog.records) == 2, "trouble that comes again is logged again"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_a_file_that_is_open_to_others_is_refused(mode: int, token_file: Callable[..., Path]) -> None:
    path = token_file(CANARY, mode)
    with pytest.raises(ConfigError, match=f"its mode {mode:04o} opens it to others .*: chmod 600") as caught:
        BearerTokens.from_file(path)
    assert caught.value.place == str(path)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
async def test_a_file_that_only_its_owner_reads_is_taken_through_a_link_too(
    mode: int, token_file: Callable[..., Path], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(token_file(CANARY, mode))
    assert BearerTokens.from_file(link).accept(bears(CANARY))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(0o700), "is no regular file"),
        (lambda path: os.mkfifo(path, 0o600), "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    ],
    ids=["missing", "directory", "pipe", "device", "loop"],
)
def test_what_is_no_regular_file_is_refused_at_once(
    make: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokens"
    make(path)
    with pytest.raises(ConfigError, match=message) as caught:
        BearerTokens.from_file(path)
    assert caught.value.place == str(path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_a_name_that_no_file_has_is_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        BearerTokens.from_file(name)


@pytest.mark.parametrize(
    "text", [b"\xff" * 20, CANARY.encode() + "ä".encode(), b"\xef\xbb\xbf" + CANARY.encode()]
)
def test_bytes_that_are_no_text_are_a_clear_error(text: bytes, token_file: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="a character that no bearer token has") as caught:
        BearerTokens.from_file(token_file(text))
    assert "canary" not in "".join(traceback.format_exception(caught.value))
