# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a network: a pure function of what is wanted and what was observed.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
import xml.etree.ElementTree as ET

from ..._core.errors import InvalidInput, InvalidTaskOption, TapvirtError, nearest_names
from ..._core.plan import Change
from ..connection.xml import Difference, text_of, to_text
from ..domain.live.edits import pending_row
from .live import NetworkEdit, live_edits
from .xml import differences, summary, with_identity, without_counters

_MAX_PENDING = 20
_MAX_NAMES = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """What holds for all networks of a task; ``disconnect`` are the domains that may lose their link."""

    apply: str
    disconnect: tuple[str, ...] = ()

    @property
    def may_redefine(self) -> bool:
        """Tell whether the stored definition of a network that is there may be changed."""
        return self.apply != "live"

    @property
    def edits(self) -> bool:
        """Tell whether a running network may be changed."""
        return self.apply != "config"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One network as the user wants it; ``root`` is the parsed ``xml``."""

    name: str
    state: str
    root: ET.Element | None = None
    autostart: bool | None = None
    xml: str | None = None


@dataclasses.dataclass(frozen=True)
class Observed:
    """One network as it was found. ``stored`` and ``running`` (only while active) are parsed XML.

    ``tells_stored`` is false where the driver shows a running network only; ``stored`` is that one then. ``attached``
    are the running domains with an interface on it, where that was looked at.
    """

    uuid: str
    active: bool
    persistent: bool
    autostart: bool
    stored: ET.Element
    running: ET.Element | None
    tells_stored: bool = True
    attached: tuple[str, ...] = ()


@dataclasses.dataclass
class NetworkPlan:
    """The steps for one network, and what would still wait after them."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    pending: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    define: str | None = None
    autostart: bool | None = None
    edits: list[NetworkEdit] = dataclasses.field(default_factory=list)
    steps: list[str] = dataclasses.field(default_factory=list)


def desired_definition(wanted: Wanted, observed: Observed | None) -> ET.Element | None:
    """Return the definition to hand to libvirt, identity included; null where nothing has to be looked at.

    :raises InvalidInput: the XML has another UUID than the network.
    """
    if wanted.state == "absent":
        return None
    if wanted.root is None:
        # A network that would vanish when it stops is to be defined as it runs.
        transient = observed is not None and not observed.persistent
        return without_counters(observed.stored) if observed is not None and transient else None
    if observed is None:
        return wanted.root
    uuid = text_of(wanted.root, "uuid")
    if uuid is not None and uuid.lower() != observed.uuid:
        problem = f"The UUID in the XML is {uuid}, but that of network {wanted.name!r} is {observed.uuid}."
        raise InvalidInput("xml", None, problem, "Leave <uuid> out of the XML to keep the UUID.")
    return with_identity(wanted.root, observed.stored)


def plan_network(
    wanted: Wanted,
    observed: Observed | None,
    desired: ET.Element | None,
    canonical: ET.Element | None,
    options: Options,
    known: t.Collection[str] = (),
) -> NetworkPlan:
    """Return the plan for one network.

    :param known: the names of all networks, to help with a wrong one.
    :param desired: from ``desired_definition``.
    :param canonical: what libvirt makes of ``desired``; null only where that is.
    :raises TapvirtError: it cannot be done, or would cut guests off that the user did not name.
    """
    if wanted.state == "absent":
        return _plan_absence(wanted, observed, options)
    if observed is None and desired is None:
        problem = "No network has this name, and the task has no xml to define one."
        raise InvalidInput("name", wanted.name, problem, candidates=nearest_names(wanted.name, known))
    plan = NetworkPlan()
    if desired is not None and canonical is not None:
        _plan_definition(plan, wanted, observed, desired, canonical, options)
    if wanted.autostart is not None and wanted.autostart != (observed.autostart if observed else False):
        plan.autostart = wanted.autostart
        plan.changes.append(
            _change(wanted, "autostart", not wanted.autostart, wanted.autostart, "setAutostart", "as wanted")
        )
    if observed is not None and observed.running is not None and wanted.state != "inactive":
        _plan_running(plan, wanted, observed, observed.running, canonical, options)
    _plan_state(plan, wanted, observed, options)
    return plan


def _change(wanted: Wanted, part: str, before: t.Any, after: t.Any, how: str, why: str) -> Change:
    return Change(f"{wanted.name} {part}", before, after, how, why)


def _plan_definition(
    plan: NetworkPlan,
    wanted: Wanted,
    observed: Observed | None,
    desired: ET.Element,
    canonical: ET.Element,
    options: Options,
) -> None:
    if observed is None:
        plan.changes.append(
            _change(wanted, "definition", None, summary(canonical), "networkDefineXML", "there is no such network")
        )
        plan.define = to_text(desired)
        return
    rows = differences(observed.stored, canonical)
    if observed.persistent and not options.may_redefine:
        # Only what runs may change: the definition that was asked for waits.
        if observed.running is None or wanted.state == "inactive":
            plan.pending += [pending_row(row.path, None, row.after, "apply") for row in rows[:_MAX_PENDING]]
        return
    if wanted.state == "inactive" or not options.edits:
        _check_told(wanted, observed, rows)
    why = "the definition is another one"
    plan.changes += [_change(wanted, row.path, row.before, row.after, "networkDefineXML", why) for row in rows]
    if not observed.persistent:
        why = "the network would vanish when it stops"
        plan.changes.append(_change(wanted, "persistent", False, True, "networkDefineXML", why))
    if plan.changes:
        plan.define = to_text(desired)


def _plan_running(
    plan: NetworkPlan,
    wanted: Wanted,
    observed: Observed,
    running: ET.Element,
    canonical: ET.Element | None,
    options: Options,
) -> None:
    """Plan edits of a running network, and list what only a restart brings in."""
    target = canonical if canonical is not None else observed.stored
    edits, edited = live_edits(target, running)
    rest = differences(edited, target)
    _check_told(wanted, observed, rest)
    if rest and options.apply == "restart_if_needed":
        # It brings everything in.
        check_attached(wanted, observed.attached, options)
        plan.steps = ["destroy", "create"]
        why = "changes wait for a restart"
        plan.changes.append(_change(wanted, "restart", "active", "active", "destroy, create", why))
        return
    if options.edits:
        plan.edits = edits
        why = "the running network differs"
        plan.changes += [
            _change(wanted, "running " + edit.path, edit.before, edit.after, "networkUpdate " + edit.command, why)
            for edit in edits
        ]
    else:
        plan.pending += _pending_rows([row for row in differences(running, target) if row not in rest], "apply")
    # What runs from now on, or was asked for, but is not stored.
    unstored = [] if options.may_redefine or not observed.persistent else differences(target, observed.stored)
    unstored_places, waiting = {row.path for row in unstored}, {row.path for row in rest}
    plan.pending += _pending_rows([row for row in rest if row.path not in unstored_places], "restart")
    plan.pending += _pending_rows([row for row in rest if row.path in unstored_places], "apply")
    plan.pending += _pending_rows([row for row in unstored if row.path not in waiting], "apply")


def _check_told(wanted: Wanted, observed: Observed, rows: t.Sequence[Difference]) -> None:
    if rows and observed.active and not observed.tells_stored:
        places = ", ".join(row.path for row in rows[:_MAX_NAMES])
        raise TapvirtError(
            f"This libvirt driver does not show the stored definition of an active network, so a change of {places} of "
            f"network {wanted.name!r} could not be read back. Nothing was changed. Stop the network to change it."
        )


def _pending_rows(rows: t.Sequence[Difference], reason: str) -> list[dict[str, t.Any]]:
    return [pending_row(row.path, row.before, row.after, reason) for row in rows[:_MAX_PENDING]]


def pending_of(stored: ET.Element, running: ET.Element) -> list[dict[str, t.Any]]:
    """Return where a running network is not what its stored definition says, and what that waits for."""
    _edits, edited = live_edits(stored, running)
    rest = differences(edited, stored)
    waiting = [row for row in differences(running, stored) if row not in rest]
    return [*_pending_rows(waiting, "apply"), *_pending_rows(rest, "restart")]


def _plan_state(plan: NetworkPlan, wanted: Wanted, observed: Observed | None, options: Options) -> None:
    active = observed is not None and observed.active
    if wanted.state == "active" and not active:
        plan.steps = ["create"]
        before = None if observed is None else "inactive"
        plan.changes.append(_change(wanted, "state", before, "active", "create", "as wanted"))
    elif wanted.state == "inactive" and observed is not None and active:
        _plan_stop(plan, wanted, observed, options)


def _plan_stop(plan: NetworkPlan, wanted: Wanted, observed: Observed, options: Options) -> None:
    check_attached(wanted, observed.attached, options)
    plan.steps = ["destroy"]
    plan.changes.append(_change(wanted, "state", "active", "inactive", "destroy", "as wanted"))


def _plan_absence(wanted: Wanted, observed: Observed | None, options: Options) -> NetworkPlan:
    plan = NetworkPlan()
    if observed is None:
        return plan
    if observed.active:
        _plan_stop(plan, wanted, observed, options)
    if observed.persistent:
        plan.steps = [*plan.steps, "undefine"]
        plan.changes.append(_change(wanted, "definition", summary(observed.stored), None, "undefine", "as wanted"))
    return plan


def check_attached(wanted: Wanted, attached: t.Sequence[str], options: Options) -> None:
    """Refuse to stop a network that running domains use.

    :raises InvalidInput: a domain has an interface on it and is not named in ``disconnect``. The option is the state of
        the network, or ``apply`` of the task where that restarts the network.
    """
    left = [domain for domain in attached if domain not in options.disconnect]
    if left:
        more = "" if len(left) <= _MAX_NAMES else f" and {len(left) - _MAX_NAMES} more"
        problem = (
            f"These running domains have an interface on network {wanted.name!r} and would lose their link: "
            f"{', '.join(left[:_MAX_NAMES])}{more}."
        )
        hint = "Name the domains in disconnect to allow that."
        if wanted.state in ("inactive", "absent"):
            raise InvalidInput("state", wanted.state, problem, hint)
        raise InvalidTaskOption("apply", options.apply, problem, hint)
