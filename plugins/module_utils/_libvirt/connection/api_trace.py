# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which calls of libvirt's API a module made, how long each took, and which failed.

Private to the collection. A connection is wrapped, and with it whatever its calls return. Arguments are not told: they
may hold what is secret.
"""

from __future__ import annotations

import threading
import time
import typing as t

_MOST_CALLS = 200
# What a name is asked of without a call to the daemon.
_NAMED = frozenset(["virDomain", "virNetwork", "virStoragePool", "virStorageVol"])


class ApiTrace:
    """The calls made through what :meth:`wrap` returned, by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[dict[str, t.Any]] = []
        self._totals: dict[str, dict[str, t.Any]] = {}

    def wrap(self, value: t.Any) -> t.Any:
        """Return an object of the binding, or a list of them, so that its calls are noted; anything else as it is."""
        if isinstance(value, list):
            return [self.wrap(item) for item in value]
        return _Traced(value, self) if type(value).__module__ == "libvirt" else value

    def note(self, call: str, name: str | None, seconds: float, error: int | None) -> None:
        """Note one call; ``error`` is libvirt's error number."""
        milliseconds = round(seconds * 1000, 3)
        with self._lock:
            if len(self._calls) < _MOST_CALLS:
                row = {"call": call, "name": name, "milliseconds": milliseconds, "libvirt_error": error}
                self._calls.append(row)
            total = self._totals.setdefault(
                call, {"call": call, "count": 0, "failed": 0, "milliseconds": 0.0, "most_milliseconds": 0.0}
            )
            total["count"] += 1
            total["failed"] += error is not None
            total["milliseconds"] = round(total["milliseconds"] + milliseconds, 3)
            total["most_milliseconds"] = max(total["most_milliseconds"], milliseconds)

    def result(self) -> dict[str, t.Any]:
        """Return ``calls`` (the first ones in their order), ``totals`` (by call, the dearest first), ``truncated``."""
        with self._lock:
            totals = sorted(self._totals.values(), key=lambda row: -row["milliseconds"])
            count = sum(row["count"] for row in totals)
            return {"calls": list(self._calls), "totals": totals, "truncated": count > len(self._calls)}


class _Traced:
    """An object of the binding whose calls are noted."""

    def __init__(self, inner: t.Any, trace: ApiTrace) -> None:
        self.inner = inner
        self._trace = trace

    def __getattr__(self, name: str) -> t.Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found
        kind = type(self.inner).__name__

        def call(*arguments: t.Any, **named_arguments: t.Any) -> t.Any:
            plain = [_plain(one) for one in arguments]
            named_plain = {key: _plain(one) for key, one in named_arguments.items()}
            error: int | None = None
            started = time.monotonic()
            try:
                result = found(*plain, **named_plain)
            except Exception as failure:
                get_code = getattr(failure, "get_error_code", int)
                error = get_code() or 0
                raise
            finally:
                seconds = time.monotonic() - started
                named = self.inner.name() if kind in _NAMED and hasattr(self.inner, "name") else None
                self._trace.note(f"{kind}.{name}", named, seconds, error)
            return self._trace.wrap(result)

        return call


def _plain(value: t.Any) -> t.Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.inner if isinstance(value, _Traced) else value


_ACTIVE: list[ApiTrace] = []


def begin() -> ApiTrace:
    """Start to note the calls of every connection that this process opens from now on."""
    _ACTIVE[:] = [ApiTrace()]
    return _ACTIVE[0]


def opened(connection: t.Any, uri: str, seconds: float) -> t.Any:
    """Return a connection as the module is to use it: wrapped where calls are to be noted, its own opening first.

    ``uri`` is told as it is.
    """
    if not _ACTIVE:
        return connection
    _ACTIVE[0].note("open", uri, seconds, None)
    return _ACTIVE[0].wrap(connection)
