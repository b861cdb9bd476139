# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving one running domain, with a deadline, progress, and an answer to where it is when that failed.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import typing as t

from ..._core.errors import TapvirtError
from ..connection.connection import Connection, Domain, libvirt, libvirt_errors
from ..connection.deadline import call_with_deadline
from ..storage.storage import shown_size
from ..storage.volume_content import Log
from .observe import Endpoints, find, see
from .plan import Seen

_TOLD_PARTS = 10
_TELL_SECONDS = 0.5
_ABORT_SECONDS = 60.0
_ABORT_AGAIN_SECONDS = 0.2
_SETTLE_SECONDS = 20.0
# virDomainGetJobStats: times in milliseconds.
_MILLISECONDS = {"elapsed_seconds": "time_elapsed", "downtime_seconds": "downtime"}
_BYTES = {"transferred_bytes": "data_processed", "memory_bytes": "memory_total"}
NO_STATISTICS: dict[str, t.Any] = dict.fromkeys([*_MILLISECONDS, *_BYTES])


@dataclasses.dataclass(frozen=True)
class Options:
    """How to move: ``mode`` is ``peer_to_peer``, ``tunnelled`` or ``client``."""

    mode: str
    deadline_seconds: float
    migrate_uri: str | None = None
    bandwidth_mib_per_second: int | None = None


def move(name: str, ends: Endpoints, destination_uri: str, before: Seen, options: Options, log: Log) -> None:
    """Migrate a domain; past the deadline it is aborted, again and again until libvirt heeds that.

    Progress goes to the host's log, in at most ten lines.

    :raises TapvirtError: it failed, or was aborted.
    """
    with libvirt_errors(f"Looking up domain {name}"):
        domain = ends.get("source").lookupByUUIDString(before.uuid)
    destination = ends.get("destination")
    flags, parameters = _flags(before, options), _parameters(options)
    ended = threading.Event()

    def call() -> None:
        try:
            if options.mode == "client":
                domain.migrate3(destination, parameters, flags)
            else:
                domain.migrateToURI3(destination_uri, parameters, flags)
        finally:
            ended.set()

    threading.Thread(target=_tell, args=(name, domain, ended, log), daemon=True).start()
    doing = f"Migrating domain {name}"
    call_with_deadline(options.deadline_seconds, doing, call, lambda: _abort(domain, ended))


def _flags(before: Seen, options: Options) -> int:
    flags: int = libvirt.VIR_MIGRATE_LIVE
    if before.persistent:
        flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    if options.mode != "client":
        flags |= libvirt.VIR_MIGRATE_PEER2PEER
    if options.mode == "tunnelled":
        flags |= libvirt.VIR_MIGRATE_TUNNELLED
    return flags


def _parameters(options: Options) -> dict[str, t.Any]:
    parameters: dict[str, t.Any] = {}
    if options.migrate_uri is not None:
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = options.migrate_uri
    if options.bandwidth_mib_per_second is not None:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth_mib_per_second
    return parameters


def _abort(domain: Domain, ended: threading.Event) -> None:
    """Ask for the end of a migration until it has come: libvirt refuses while the two ends still prepare it."""
    give_up = time.monotonic() + _ABORT_SECONDS
    while not ended.is_set() and time.monotonic() < give_up:
        with contextlib.suppress(libvirt.libvirtError):
            domain.abortJob()
        ended.wait(_ABORT_AGAIN_SECONDS)


def _tell(name: str, domain: Domain, ended: threading.Event, log: Log) -> None:
    told = 0
    with contextlib.suppress(libvirt.libvirtError):
        while not ended.wait(_TELL_SECONDS):
            found = domain.jobStats()
            total, left = found.get("data_total", 0), found.get("data_remaining", 0)
            part = (total - left) * _TOLD_PARTS // total if total else 0
            if part > told:
                told = part
                log(f"{name}: {shown_size(total - left)} of {shown_size(total)} migrated")


def statistics(ends: Endpoints, uuid: str) -> dict[str, t.Any]:
    """Return what libvirt counted of a migration that is done; null for what it does not say."""
    found: dict[str, t.Any] = {}
    with contextlib.suppress(libvirt.libvirtError, TapvirtError):
        domain = ends.get("destination").lookupByUUIDString(uuid)
        found = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    times = {key: found[word] / 1000 if word in found else None for key, word in _MILLISECONDS.items()}
    return {**times, **{key: found.get(word) for key, word in _BYTES.items()}}


def whereabouts(name: str, ends: Endpoints, before: Seen) -> tuple[str, bool]:
    """Return a sentence on where a domain is after a failure, and whether it runs at the destination alone."""
    told: dict[str, str] = {}
    seen: dict[str, Seen | None] = {}
    for end in ("source", "destination"):
        try:
            connection = ends.get(end)
            if end == "source":
                _settle(connection, before.uuid)
            with libvirt_errors(f"Looking up domain {name}"):
                # A daemon that has come up again ends what was on its way to it only once it has met it.
                ending = end == "destination" and seen.get("source") == before
                seen[end] = _seen(connection, before, _SETTLE_SECONDS if ending else 0)
            found = seen[end]
            told[end] = "does not exist" if found is None else found.words()
        except TapvirtError as error:
            told[end] = f"is not known ({error.message.rstrip('.')})"
    if seen.get("source") == before and "destination" in seen and seen["destination"] is None:
        return f"It {before.words()} at the source as before, and it does not exist at the destination.", False
    arrived = seen.get("destination")
    moved = arrived is not None and arrived.active and "source" in seen and seen["source"] is None
    return f"At the source it {told['source']}; at the destination it {told['destination']}.", moved


def _seen(connection: Connection, before: Seen, wait_seconds: float) -> Seen | None:
    """Read the domain at one end, and again as long as it is there and there is time to wait for its going."""
    give_up = time.monotonic() + wait_seconds
    while True:
        found = see(find(connection, before.name, before.uuid))
        if found is None or time.monotonic() >= give_up:
            return found
        time.sleep(_TELL_SECONDS)


def _settle(source: Connection, uuid: str) -> None:
    """Wait, not for long, until the source has no job for the domain any more: what it is then is what it stays."""
    give_up = time.monotonic() + _SETTLE_SECONDS
    with contextlib.suppress(libvirt.libvirtError):
        domain = source.lookupByUUIDString(uuid)
        while domain.jobInfo()[0] and time.monotonic() < give_up:
            time.sleep(_TELL_SECONDS)
