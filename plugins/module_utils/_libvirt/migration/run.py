# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many running domains from one libvirt to another: check the input, observe both, plan, move one by one, verify.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t

from ..._core.errors import InvalidInput, NoEffect, TapvirtError, error_row
from ..connection.connection import Connection, check_uri, libvirt_errors, shown_uri
from ..item_run import Item, ItemRun, check_names
from ..storage.volume_content import Log
from .apply import NO_STATISTICS, Options, move, statistics, whereabouts
from .observe import Endpoints, check_ends, observe
from .plan import MigrationPlan, Observed, Seen, Wanted, plan_migration

_MIGRATE_URI = re.compile(
    r"(?:(?:tcp|rdma)://[^/\s:@]+(?::\d+)?|(?:tcp|rdma)://\[[0-9a-f:.]+\](?::\d+)?|unix:///\S+)\Z"
)


def read_wanted(names: t.Sequence[str], option: str = "domains") -> list[Wanted]:
    """Turn a user's names into ``Wanted``.

    :param option: the option that lists the names; empty where the option ``name`` has the only one.
    :raises InvalidInput: a name is not valid, or is in the list twice.
    """
    check_names(option, names, "" if option else "name")
    return [Wanted(name) for name in names]


def check_options(uri: str, destination: str, options: Options) -> None:
    """Check the options beside the names.

    :raises InvalidInput: one cannot be accepted.
    """
    for option, place in (("uri", uri), ("destination", destination)):
        if check_uri(place, option) is not None:
            problem = "libvirt's embedded driver does not migrate domains, because no other libvirt can reach it"
            raise InvalidInput(option, shown_uri(place), problem)
    if options.deadline_seconds <= 0:
        raise InvalidInput("deadline_seconds", options.deadline_seconds, "The deadline has to be more than 0 seconds")
    bandwidth = options.bandwidth_mib_per_second
    if bandwidth is not None and bandwidth < 1:
        raise InvalidInput("bandwidth_mib_per_second", bandwidth, "The bandwidth has to be at least 1 MiB per second")
    if options.migrate_uri is None:
        return
    if options.mode == "tunnelled":
        problem = "With mode: tunnelled, the data goes through the connection of the two daemons"
        raise InvalidInput("migrate_uri", shown_uri(options.migrate_uri), problem, "Leave migrate_uri out")
    if not _MIGRATE_URI.match(options.migrate_uri):
        problem = "The destination cannot receive the data at this URI"
        hint = "Use a URI such as tcp://HOST, tcp://HOST:PORT, rdma://HOST or unix:///PATH"
        raise InvalidInput("migrate_uri", shown_uri(options.migrate_uri), problem, hint)


_Item = Item[Wanted, Observed, MigrationPlan]


class MigrationFailure(TapvirtError):
    """A domain cannot be moved: ``cause`` is why, and ``whereabouts`` a sentence on where the domain is now."""

    def __init__(self, cause: TapvirtError, whereabouts: str) -> None:
        super().__init__(f"{cause.message} {whereabouts}", **cause.fields)
        row = cause.row()
        self._row = {**row, "problem": f"{row['problem']} {whereabouts}"}

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of the cause, with the sentence in its problem."""
        return self._row


class MigrationRun(ItemRun[Wanted, Observed, MigrationPlan]):
    """Moves domains, one after another. ``log`` is told how far one is."""

    rows = "domains"

    def __init__(
        self,
        uri: str,
        destination: str,
        timeout_seconds: float,
        wanted: t.Sequence[Wanted],
        options: Options,
        log: Log,
        option: str | None = None,
    ) -> None:
        """Prepare the run.

        :param option: as ``read_wanted`` takes it.
        """
        super().__init__(wanted, MigrationPlan, option)
        for item in self._items:
            # The name is the whole item.
            item.path = item.path or "name"
        check_options(uri, destination, options)
        self._destination_uri = destination
        self._places = (shown_uri(uri), shown_uri(destination))
        self._options = options
        self._log = log
        self._ends = Endpoints(uri, destination, timeout_seconds)
        self._check_mode = False
        self._before: dict[str, Seen] = {}
        self._statistics: dict[str, dict[str, t.Any]] = {}

    def converge(self, check_mode: bool, with_diff: bool) -> dict[str, t.Any]:
        """Plan, apply unless in check mode, verify; return the module's result.

        :raises TapvirtError: at least one domain failed; the rows of all are in its fields.
        """
        self._check_mode = check_mode
        with self._ends as ends:
            check_ends(ends, self._places)
            self.run(ends.get("source"), check_mode)
            for item in self._items:
                if item.plan.changes and not item.error:
                    self._warnings += item.plan.doubts
            return self.result(check_mode, with_diff)

    # ---- observe ----

    def _observe(self, connection: Connection) -> None:
        del connection  # either end may have been lost and opened again
        for item in self._items:
            item.observed = None
            try:
                item.observed = observe(self._ends, item.wanted.name, not self._check_mode)
            except TapvirtError as error:
                if item.error is None:
                    item.fail(error)

    # ---- plan ----

    def _plan(self, item: _Item) -> MigrationPlan:
        observed = t.cast("Observed", item.observed)  # one that could not be looked at has its error and no plan
        return plan_migration(item.wanted, observed, self._places, self._options.mode)

    # ---- apply ----

    def _apply(self, connection: Connection, item: _Item) -> None:
        del connection
        name = item.wanted.name
        before = None if item.observed is None else item.observed.source
        if before is None:
            return
        self._before[name] = before
        try:
            move(name, self._ends, self._destination_uri, before, self._options, self._log)
        except TapvirtError as error:
            sentence, item.done = whereabouts(name, self._ends, before)
            raise MigrationFailure(error, sentence) from error
        item.done = True
        self._statistics[name] = statistics(self._ends, before.uuid)
        if item.plan.autostart:
            with libvirt_errors(f"Domain {name!r} has moved, but setting its autostart at the destination"):
                self._ends.get("destination").lookupByUUIDString(before.uuid).setAutostart(1)

    # ---- verify ----

    def _verify(self, connection: Connection, touched: t.Sequence[_Item]) -> None:
        super()._verify(connection, touched)
        for item in touched:
            before, observed = self._before.get(item.wanted.name), item.observed
            if item.error or before is None or observed is None:
                continue
            if observed.place != "destination" or observed.destination != before:
                message = (
                    f"Domain {item.wanted.name!r} was migrated without an error, but the destination has "
                    f"{observed.destination} instead of {before}."
                )
                item.fail(NoEffect(message))

    def _keep(self, item: _Item, planned: MigrationPlan) -> None:
        item.plan = planned

    # ---- result ----

    def _row(self, item: _Item, check_mode: bool) -> dict[str, t.Any]:
        name, observed = item.wanted.name, item.observed
        seen = None if observed is None else observed.destination or observed.source
        place = None if observed is None else observed.place
        if check_mode and item.plan.move and not item.error:
            place = "destination"
        return {
            "name": name,
            "uuid": None if seen is None else seen.uuid,
            "source": self._places[0],
            "destination": self._places[1],
            "location": place,
            "state": None if seen is None else seen.state,
            **self._statistics.get(name, NO_STATISTICS),
            "changed": item.changed(check_mode),
            "error": error_row(item.error),
        }
