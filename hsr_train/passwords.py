"""Passwords in addresses, such as postgresql://user:password@host: not to be shown, logged or saved."""

from __future__ import annotations

import re

_OF_USER = re.compile(r"""(:/+[^:/@\s]*):(?!PASSWORD@)[^\s"']+@""")
"""A password may hold what a proper address writes otherwise, `/`, `:` and `@`; PASSWORD says where one is to be."""
_AS_OPTION = re.compile(r"""(?i)([?&]passw(?:or)?d=)[^&\s"']+""")
_SCHEME = re.compile(r"""["']?[\w+.-]*:/+""")


def without_passwords(text: str) -> str:
    """Return a text with `***` for the passwords of the addresses in it."""
    return _AS_OPTION.sub(r"\1***", _OF_USER.sub(r"\1:***@", text))


def without_password(address: str) -> str:
    """Return what is meant as one address, however it is mistyped, with `***` for its password."""
    before, at, host = address.rpartition("@")
    scheme = _SCHEME.match(before)
    start = scheme.end() if scheme else 0
    user, colon, _ = before[start:].partition(":")
    if at and colon:
        address = f"{before[:start]}{user}:***@{host}"
    return _AS_OPTION.sub(r"\1***", address)
