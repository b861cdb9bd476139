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
import signal
import subprocess
import sys
import typing as t
from urllib.parse import urlsplit

import ansible
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    INTERPRETERS,
    libvirt,
    shown_uri,
)

_MODULE = "ansible_collections.tapvirt.host.plugins.modules.libvirt_domain_info"
_COLLECTIONS = str(pathlib.Path(__file__).resolve().parents[6])
_ANSIBLE = str(pathlib.Path(ansible.__file__).resolve().parents[1])
_MOST_DOMAINS = 10000
# A process starts and ends, too; the module keeps the deadline of the connection itself.
_GRACE_SECONDS = 10


def ask_all(
    uris: t.Sequence[str], timeout_seconds: int, parallel: int, grace_seconds: float = _GRACE_SECONDS
) -> tuple[list[dict[str, t.Any]], list[str]]:
    """Return the rows of all domains, in the order of the URIs, and a sentence for each URI that gave none.

    A row is one of :ansplugin:`tapvirt.host.libvirt_domain_info#module`, with ``uri`` and ``hypervisor``.

    :param timeout_seconds: the deadline of each connection.
    :param parallel: how many hosts are asked at the same time.
    :param grace_seconds: how much longer than its connection a process may take.
    """
    rows: list[dict[str, t.Any]] = []
    errors: list[str] = []
    argv, env = _command()
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, parallel)) as pool:
        answers = pool.map(lambda one: _ask(argv, env, one, timeout_seconds, grace_seconds), uris)
        for uri, answer in zip(uris, answers, strict=True):
            if "domains" in answer:
                where = {"uri": shown_uri(uri), "hypervisor": urlsplit(uri).hostname or "localhost"}
                rows += [{**row, **where} for row in answer["domains"]]
            if answer.get("failed") or answer.get("truncated"):
                why = answer.get("msg") or f"it has more than {_MOST_DOMAINS} domains; the rest is left out."
                errors.append(f"{shown_uri(uri)}: {why}")
    return rows, errors


def _command() -> tuple[list[str], dict[str, str]]:
    """Return the command that is the module, and its environment: under a Python that has the binding if any has."""
    python, places = sys.executable, [_COLLECTIONS, *filter(None, sys.path)]
    other = None if libvirt else next(filter(_has_binding, INTERPRETERS), None)
    if other:  # another version's standard library is not for it
        python, places = other, [_COLLECTIONS, _ANSIBLE]
    return [python, "-m", _MODULE], os.environ | {"PYTHONPATH": os.pathsep.join(places)}


def _has_binding(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", "import libvirt"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _ask(
    argv: list[str], env: dict[str, str], uri: str, timeout_seconds: int, grace_seconds: float
) -> dict[str, t.Any]:
    """Return a module's result for one URI; a process that gives none has failed."""
    options = {"uri": uri, "connect_timeout_seconds": timeout_seconds, "limit": _MOST_DOMAINS}
    pipe = subprocess.PIPE
    # A session of its own: ssh finds no terminal to ask for a password on, and ends with the module.
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, text=True, start_new_session=True)
    with process:
        try:
            text = json.dumps({"ANSIBLE_MODULE_ARGS": options})
            stdout, stderr = process.communicate(text, timeout_seconds + grace_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return {"failed": True, "msg": f"no answer within {timeout_seconds} s."}
    try:
        return t.cast("dict[str, t.Any]", json.loads(stdout))
    except (ValueError, RecursionError):
        said = (stderr.strip().splitlines() or ["nothing"])[-1]
        return {"failed": True, "msg": f"no result (rc {process.returncode}): {said[:500]}"}


def is_wanted(row: t.Mapping[str, t.Any], names: t.Sequence[str], states: t.Sequence[str]) -> bool:
    """Tell whether a domain is one of those asked for."""
    named = any(fnmatch.fnmatchcase(row["name"], pattern) for pattern in names)
    return named and (not states or row["state"] in states)
