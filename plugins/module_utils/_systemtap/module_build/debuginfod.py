# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option ``debuginfod`` of modules: servers that have debug information by build-id, and the bounds of its cache.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..._core.errors import InvalidInput, TapvirtError
from ..._core.options import parse_age

OPTIONS: dict[str, t.Any] = {
    "type": "dict",
    "options": {
        "servers": {"type": "list", "elements": "str", "required": True},
        "timeout_seconds": {"type": "int", "default": 300},
        "max_cache_bytes": {"type": "bytes", "default": "10G"},
        "max_cache_age": {"type": "str", "default": "30d"},
    },
}
"""The specification of the option ``debuginfod`` of modules."""
_MOST_SECONDS = 86_400
BUILD_ID = re.compile(r"(?:[0-9a-f]{2}){8,64}\Z")


@dataclasses.dataclass(frozen=True)
class Debuginfod:
    """The option ``debuginfod``: servers (URLs without a slash at the end), and bounds of time, size and age."""

    servers: tuple[str, ...]
    timeout_seconds: int
    max_cache_bytes: int
    max_cache_age_seconds: int


class DebuginfoError(TapvirtError):
    """Debug information could not be fetched; nothing was added to the store."""

    def __init__(self, option: str, value: t.Any, problem: str, hint: str) -> None:
        super().__init__(f"{problem} {hint}", phase="debuginfo", outcome="build_failed")
        self._row = {"option": option, "value": value, "problem": problem, "hint": hint, "candidates": []}

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result: ``{option, value, problem, hint, candidates}``."""
        return self._row


def read_debuginfod(option: t.Mapping[str, t.Any] | None) -> Debuginfod | None:
    """Check the option ``debuginfod``; None where it is not given.

    :raises InvalidInput: a server is not an HTTP URL, or a bound is not acceptable.
    """
    if option is None:
        return None
    servers = tuple(_read_server(index, text) for index, text in enumerate(option["servers"]))
    if not servers:
        problem = "At least one debuginfod server is needed."
        hint = "Name one, such as https://debuginfod.debian.net, or leave the option debuginfod out."
        raise InvalidInput("debuginfod.servers", [], problem, hint)
    if option["max_cache_bytes"] < 1:
        raise InvalidInput("debuginfod.max_cache_bytes", option["max_cache_bytes"], "max_cache_bytes takes 1 or more.")
    if not 1 <= option["timeout_seconds"] <= _MOST_SECONDS:
        problem = f"timeout_seconds takes a number from 1 to {_MOST_SECONDS}."
        raise InvalidInput("debuginfod.timeout_seconds", option["timeout_seconds"], problem)
    age = parse_age(option["max_cache_age"], "debuginfod.max_cache_age")
    return Debuginfod(servers, option["timeout_seconds"], option["max_cache_bytes"], age)


def _read_server(index: int, text: str) -> str:
    import urllib.parse

    option = f"debuginfod.servers[{index}]"
    hint = "Give it as in https://debuginfod.debian.net."
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
        # As the resolver does it: it takes no empty label and none of more than 63 characters.
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise InvalidInput(option, None, "The URL of a debuginfod server cannot be read.", hint) from None
    if parts.username is not None or parts.password is not None:
        # The value is not shown: it holds a password.
        raise InvalidInput(option, None, "The URL of a debuginfod server has no user and no password.", hint)
    # debuginfod-find takes URLs with spaces between them.
    if not usable or re.search(r"[\s\x00-\x1f\x7f]|[^\x21-\x7e]", text) or parts.query or parts.fragment:
        problem = "The URL of a debuginfod server begins with http:// or https:// and has a host, and no spaces."
        raise InvalidInput(option, text, problem, hint)
    return text.rstrip("/")


def check_build_id(option: str, text: str) -> str:
    """Return a build-id in lower case.

    :raises InvalidInput: it is not one.
    """
    if not BUILD_ID.match(text.lower()):
        problem = "A build-id has an even number of hexadecimal digits, 40 as a rule and at least 16."
        hint = "kernel_facts returns the kernel's as tapvirt_kernel.build_id, stap_probe_info those of modules."
        raise InvalidInput(option, text, problem, hint)
    return text.lower()
