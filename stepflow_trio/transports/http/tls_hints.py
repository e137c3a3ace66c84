"""What is probably wrong where TLS fails, or fails to be there: the library's own words do not tell."""

from __future__ import annotations

import ssl

_CLIENT_CERTIFICATE = "the server may ask for a client certificate: tls.certificate, tls.privateKey"
_NO_TLS = "it does not speak TLS there: http:// ?"
_TLS = "it may speak TLS there: https:// ?"
_AUTHORITY = "tls.ca names the authority to trust"

_NOT_TLS_REASONS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"}
)
_UNKNOWN_AUTHORITY_CODES = frozenset({18, 19, 20, 21})
"""Of X.509: self-signed, or with an issuer that is not at hand."""

_TLS_ALERT = b"\x15\x03"


def handshake_hint(exc: BaseException) -> str:
    """To be added to what is said of a handshake that has failed as a client; empty where that tells all."""
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"; {_AUTHORITY}" if cause.verify_code in _UNKNOWN_AUTHORITY_CODES else ""
    if not isinstance(cause, ssl.SSLError):
        return ""
    if cause.reason in _NOT_TLS_REASONS:
        return f"; {_NO_TLS}"
    return f"; {_CLIENT_CERTIFICATE}" if isinstance(cause, ssl.SSLEOFError) or _is_alert(cause) else ""


def first_answer_hint(received: bytes, *, is_tls: bool) -> str:
    """To be added to what is said of a connection that was lost before its server's first answer.

    With TLS 1.3, a client learns only then that its certificate was not taken. ``received`` is how what came
    of the answer begins.
    """
    if is_tls:
        return "" if received else f"; {_CLIENT_CERTIFICATE}"
    return f"; {_TLS}" if not received or received.startswith(_TLS_ALERT) else ""


def _is_alert(error: ssl.SSLError) -> bool:
    return "ALERT" in (error.reason or "")
