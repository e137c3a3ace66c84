"""Bearer tokens: kept out of sight, read from where only their owner can read, compared in constant time."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from hmac import compare_digest
from typing import NoReturn, SupportsIndex, final

import trio

from stepflow_trio.errors import ConfigError

MIN_TOKEN_CHARACTERS = 16
"""A shorter token could be guessed. ``openssl rand -hex 32`` makes a good one."""

MAX_TOKEN_CHARACTERS = 4096
"""A longer token does not fit beside other headers."""

MAX_TOKENS = 2
"""While a token is being changed the old one and the new one are both valid."""

RECHECK_S = 1.0
"""A file of tokens is read again when a request comes so long after the last time."""

_MAX_FILE_BYTES = 64 * 2**10
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750, section 2.1."""

_log = logging.getLogger("stepflow_trio.transports.http")


@final
class SecretStr:
    """A text that is shown only to who asks for it with :meth:`reveal`.

    ``repr``, ``str``, ``format`` and so every log show ``SecretStr('…')``, whatever it holds and however long
    it is. It cannot be pickled; a copy of it is itself. Two are compared in constant time.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __repr__(self) -> str:
        return "SecretStr('…')"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretStr):
            return NotImplemented
        return compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((SecretStr, self._value))

    def __copy__(self) -> SecretStr:
        return self

    def __deepcopy__(self, memo: object) -> SecretStr:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret is not pickled: what is stored would no longer be one")


@final
class BearerTokens:
    """Who may call: those who know a token. Two of them are valid while the old one is being replaced.

    Given here (``place`` says where they come from, for errors), or read by :meth:`from_file` or
    :meth:`from_environment`; never taken from a command line, which every user of the machine can read.
    Neither its ``repr`` nor any error shows a token.

    Raises:
        ConfigError: there is no token or there are more than two, one is shorter than 16 characters or longer
            than 4096, or it holds a character that no bearer token has (RFC 6750, section 2.1).
    """

    __slots__ = ("_file", "_place", "_read_at", "_tokens", "_trouble")

    def __init__(self, *tokens: SecretStr | str, place: str = "") -> None:
        texts = [token.reveal() if isinstance(token, SecretStr) else token for token in tokens]
        self._tokens = _checked(texts, place)
        self._place = place
        self._file: str | None = None
        self._read_at = float("-inf")
        self._trouble = ""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> BearerTokens:
        """The tokens in a file, one a line. A file that is written anew counts within a second.

        Should it be missing or unusable then (half written, say), the tokens that were last read stay valid
        and the trouble is logged: to take a token back, write another one.

        Raises:
            ConfigError: as above, or the file cannot be read, is no regular file, or is open to others
                than its owner.
        """
        name = os.fspath(path)
        tokens = cls(*_read_private_file(name), place=name)
        tokens._file = name
        return tokens

    @classmethod
    def from_environment(cls, name: str, environ: Mapping[str, str] | None = None) -> BearerTokens:
        """The tokens in the environment variable ``name``, white space between them.

        ``environ`` is looked at in the place of this process's environment.

        Raises:
            ConfigError: as above, or the variable is not set.
        """
        place = f"environment variable {name}"
        value = (os.environ if environ is None else environ).get(name)
        if value is None:
            raise ConfigError("it is not set, but is to hold the bearer token", place)
        return cls(*value.split(), place=place)

    def current(self) -> SecretStr:
        """The first token: the one to send. Where a file is read, to be called under trio."""
        self._refresh()
        return SecretStr(self._tokens[0].decode())

    def accept(self, authorization: bytes) -> bool:
        """Whether this value of an ``Authorization`` header bears one of the tokens.

        How long it takes tells nothing of a token but its length. Where a file is read, to be called under
        trio.
        """
        if self._file is not None:
            self._refresh()
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        token = token.strip(b" ")
        return any([compare_digest(token, each) for each in self._tokens])  # noqa: C419 — all are compared

    def _refresh(self) -> None:
        if self._file is None or (now := trio.current_time()) < self._read_at + RECHECK_S:
            return
        self._read_at = now
        try:
            self._tokens = _checked(_read_private_file(self._file), self._place)
        except ConfigError as exc:
            if str(exc) != self._trouble:
                _log.error("the bearer tokens last read stay valid, for the file is unusable: %s", exc)
            self._trouble = str(exc)
        else:
            self._trouble = ""

    def __repr__(self) -> str:
        return f"<{len(self._tokens)} bearer token(s) {f'from {self._place}' if self._place else 'given'}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("bearer tokens are not pickled: what is stored would no longer be a secret")


def as_secret(bearer: SecretStr | BearerTokens | str) -> SecretStr | BearerTokens:
    """What a caller gives as the token to send, out of sight from now on.

    Raises:
        ConfigError: it is none of these; its value is not shown.
    """
    if isinstance(bearer, str):
        return SecretStr(bearer)
    if not isinstance(bearer, (SecretStr, BearerTokens)):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
        raise ConfigError(
            f"bearer is a {type(bearer).__name__}; it takes a text, SecretStr(…) or BearerTokens(…)"
        )
    return bearer


def authorization(bearer: SecretStr | BearerTokens) -> bytes:
    """The value of the ``Authorization`` header that bears a token: of several, the current one.

    Raises:
        ConfigError: it holds a character that no bearer token has (RFC 6750, section 2.1).
    """
    token = (bearer.current() if isinstance(bearer, BearerTokens) else bearer).reveal()
    if not _TOKEN.fullmatch(token):
        # Whoever writes the header would refuse it too, and show it.
        raise ConfigError("the bearer token holds a character that no token has (RFC 6750, section 2.1)")
    return b"Bearer " + token.encode("ascii")


def _checked(texts: Sequence[str], place: str) -> tuple[bytes, ...]:
    """The tokens as they travel. No message shows any of their characters."""
    if not texts:
        raise ConfigError("it holds no bearer token", place)
    if len(texts) > MAX_TOKENS:
        raise ConfigError(f"{len(texts)} bearer tokens are given; the old and the new one are enough", place)
    for number, text in enumerate(texts, 1):
        which = f"bearer token {number}" if len(texts) > 1 else "the bearer token"
        if len(text) < MIN_TOKEN_CHARACTERS:
            raise ConfigError(
                f"{which} has {len(text)} characters, but must have {MIN_TOKEN_CHARACTERS} or more: "
                "`openssl rand -hex 32` makes one",
                place,
            )
        if len(text) > MAX_TOKEN_CHARACTERS:
            raise ConfigError(
                f"{which} has {len(text)} characters, but must have {MAX_TOKEN_CHARACTERS} or fewer", place
            )
        if not _TOKEN.fullmatch(text):
            raise ConfigError(
                f"{which} holds a character that no bearer token has: "
                "it is made of letters, digits and -._~+/ with = at its end only",
                place,
            )
    return tuple(text.encode() for text in texts)


def _read_private_file(name: str) -> list[str]:
    try:
        # A named pipe would wait for a writer. Links are followed: that is how secrets are mounted.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError("it is to hold bearer tokens, but is no regular file", name)
            if status.st_mode & 0o077:
                raise ConfigError(
                    f"it holds bearer tokens, but its mode {stat.S_IMODE(status.st_mode):04o} opens it to "
                    "others than its owner: chmod 600",
                    name,
                )
            data = os.read(fd, _MAX_FILE_BYTES)
        finally:
            os.close(fd)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the file's name
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(f"the bearer tokens cannot be read: {why}", name) from exc
    # What is not ASCII is found with the other characters that no token has.
    return data.decode("ascii", errors="replace").split()
