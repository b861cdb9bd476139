# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The domains of many libvirts, asked from the controller side by side. Private to the collection."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import typing as t
from urllib.parse import urlsplit

from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection import shown_uri

_MODULE = "ansible_collections.tapvirt.host.plugins.modules.libvirt_domain_info"
_COLLECTIONS = str(pathlib.Path(__file__).resolve().parents[5])
_MOST_DOMAINS = 10000
# A process starts and ends, too; the module keeps the deadline of the connection itself.
_GRACE_SECONDS = 10


def ask_all(uris: t.Sequence[str], timeout_seconds: int, parallel: int) -> tuple[list[dict[str, t.Any]], list[str]]:
    """Return the rows of all domains, in the order of the URIs, and a sentence for each URI that gave none.

    A row is one of :ansplugin:`tapvirt.host.libvirt_domain_info#module`, with ``uri`` and ``hypervisor``.
    """
    rows: list[dict[str, t.Any]] = []
    errors: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        for uri, answer in zip(uris, pool.map(lambda one: ask(one, timeout_seconds), uris), strict=True):
            if "domains" in answer:
                where = {"uri": shown_uri(uri), "hypervisor": urlsplit(uri).hostname or "localhost"}
                rows += [{**row, **where} for row in answer["domains"]]
            if answer.get("failed") or answer.get("truncated"):
                why = answer.get("msg") or f"it has more than {_MOST_DOMAINS} domains; the rest is left out."
                errors.append(f"{shown_uri(uri)}: {why}")
    return rows, errors


def ask(uri: str, timeout_seconds: int) -> dict[str, t.Any]:
    """Return a module's result for one URI; a process that gives none has failed."""
    options = {"uri": uri, "connect_timeout_seconds": timeout_seconds, "limit": _MOST_DOMAINS}
    env = os.environ | {"PYTHONPATH": os.pathsep.join([_COLLECTIONS, *filter(None, sys.path)])}
    try:
        done = subprocess.run(
            [sys.executable, "-m", _MODULE],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": options}),
            capture_output=True,
            env=env,
            text=True,
            timeout=timeout_seconds + _GRACE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": True, "msg": f"no answer within {timeout_seconds} s."}
    try:
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return {"failed": True, "msg": f"no result (rc {done.returncode}): {said[:500]}"}


def is_wanted(row: t.Mapping[str, t.Any], names: t.Sequence[str], states: t.Sequence[str]) -> bool:
    """Tell whether a domain is one of those asked for."""
    named = any(fnmatch.fnmatchcase(row["name"], pattern) for pattern in names)
    return named and (not states or row["state"] in states)
