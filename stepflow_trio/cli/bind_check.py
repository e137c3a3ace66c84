"""Who an address lets in, said in the words of the command line before anything listens there."""

from __future__ import annotations

import ipaddress

from stepflow_trio.cli.exits import Unusable


def require_guarded(
    host: str, *, bearer_token_file: str | None, allow_insecure_bind: bool, what: str
) -> None:
    """Refuse an address that other machines reach where nothing is asked of them and nobody says it is meant.

    Args:
        host: the address.
        bearer_token_file: where the tokens are of which clients must bear one.
        allow_insecure_bind: it is meant.
        what: who reaches it could do this.

    Raises:
        Unusable: with what to do.
    """
    if bearer_token_file is None and not allow_insecure_bind and _lets_others_in(host):
        raise Unusable(
            f"--host {host} lets other machines in, and whoever reaches it could {what}: give "
            "--bearer-token-file, or say --allow-insecure-bind"
        )


def _lets_others_in(host: str) -> bool:
    """Whether it is an address that other machines reach; of a name, the server finds out."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
