"""Whom to trust: TLS contexts for the store and the report service."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext


def context(ca: str) -> SSLContext:
    """A context that trusts the PEM in `ca`, or in the file that it names, and nobody else; empty: the system's.

    :raises OSError: if it cannot be read, or holds no certificate.
    """
    import ssl

    if not ca:
        return ssl.create_default_context()
    try:
        if "-----BEGIN" in ca:
            return ssl.create_default_context(cadata=ca)
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        where = "the variable" if "-----BEGIN" in ca else ca
        raise OSError(f"the certificates in {where} cannot be used: {error}") from None
