# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edits made on a host, each held against what it has to give: its rows, its effect, what waits, and nothing more.

Libvirt's own XML is read before and after, and compared here by itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.tapvirt.host.tests.unit.support.libvirt.domain_edits import (
    MASK,
    RUNNING_WHY,
    STORED_WHY,
    Device,
    Edit,
    Value,
    World,
)

# What names a device among its like; other elements have a name of their own, or stand alone, or have a number.
KEYS = {
    "disk": ["target@dev"],
    "interface": ["mac@address"],
    "controller": ["@type", "@index"],
    "graphics": ["@type"],
}


class Xml:
    """A definition by its places: ``devices/disk[vda]/source@file``."""

    def __init__(self, text: str) -> None:
        self.elements: dict[str, ET.Element] = {}
        self.leaves: dict[str, str] = {}
        root = ET.fromstring(text)
        for element in root.findall("metadata"):
            root.remove(element)
        self._add("", root)

    def _add(self, place: str, element: ET.Element) -> None:
        self.elements[place] = element
        for name, value in element.attrib.items():
            self.leaves[f"{place}@{name}"] = value
        if (element.text or "").strip():
            self.leaves[place] = element.text.strip()
        for child in element:
            self._add(f"{place}/{_label(element, child)}".lstrip("/"), child)

    def value(self, place: str, other: Xml) -> str | None:
        """Return what stands at a place: all of an element that ``other`` does not have, else its text."""
        if "@" in place or place in other.elements:
            return self.leaves.get(place)
        return shown(self.elements.get(place))


def _label(parent: ET.Element, child: ET.Element) -> str:
    like = parent.findall(child.tag)
    if parent.tag != "devices":
        key = next((child.get(name) for name in ("name", "id", "vcpu", "vcpus") if child.get(name)), None)
        return child.tag if len(like) == 1 else f"{child.tag}[{key or like.index(child)}]"
    parts = []
    for key in KEYS.get(child.tag, []):
        tag, _at, name = key.partition("@")
        parts.append((child.find(tag) if tag else child).get(name, "?"))
    return f"{child.tag}[{':'.join(parts) or like.index(child)}]"


def shown(element: ET.Element | None) -> str | None:
    """Return an element as a row shows it: on one line, a password masked."""
    if element is None:
        return None
    text = re.sub(r">\s+<", "><", ET.tostring(element, encoding="unicode").strip())
    text = re.sub(r' passwd="[^"]*"', f' passwd="{MASK}"', text)
    if not element.attrib and not len(element):
        return (element.text or "").strip() or f"<{element.tag}/>"
    return text


@dataclasses.dataclass(frozen=True)
class Definitions:
    """A domain as libvirt has it; ``running`` is null while it is off."""

    stored: Xml
    running: Xml | None


@dataclasses.dataclass(frozen=True)
class Made:
    """What a host tells of edits: the definitions before and after, check mode, the run, and the one after it.

    ``warned``: the results have the warnings, which Ansible takes out of them to show them itself.
    """

    before: dict[str, Definitions]
    planned: dict[str, t.Any]
    done: dict[str, t.Any]
    after: dict[str, Definitions]
    again: dict[str, t.Any]
    warned: bool = True


def read_definitions(text: str) -> dict[str, Definitions]:
    """Read what ``READ`` prints."""
    found = json.loads(text)
    return {name: Definitions(Xml(stored), running and Xml(running)) for name, (stored, running) in found.items()}


# Prints the definitions of NAMES, with ``connection`` open and ``libvirt`` imported.
READ = """
import json
found = {}
for name in NAMES:
    domain = connection.lookupByName(name)
    found[name] = [domain.XMLDesc(3), domain.XMLDesc(1) if domain.isActive() else None]
print(json.dumps(found))
"""


def items(world: World, edits: t.Sequence[Edit], after: bool, running: bool) -> list[dict[str, t.Any]]:
    """Return the module's list of domains, before the edits or after them."""
    guests = [edit.after if after else edit.before for edit in edits]
    return [
        {"name": edit.name, "state": edit.state if running else "present", "xml": guest.xml(world)}
        for edit, guest in zip(edits, guests, strict=True)
    ]


def wrong_edits(edits: t.Sequence[Edit], made: Made, running: bool) -> list[str]:
    """Return what is not as it has to be, of edits made of domains that are off, or that run."""
    results = [made.planned, made.done, made.again]
    assert made.planned["plan"] == made.done["plan"]
    assert (made.again["changed"], made.again["plan"]) == (False, [])
    assert "hunter" not in json.dumps([{**result, "invocation": None} for result in results])
    warnings = str(made.done.get("warnings"))
    warned = sorted(re.findall(r"[\w-]+(?=: \w+ of \S+ has no effect (?:before a restart|yet))", warnings))
    refused = sorted(edit.name for edit in edits if running and edit.refused)
    assert warned == refused or not made.warned, warnings
    wrong = []
    for edit, *rows in zip(edits, *(result["domains"] for result in results), strict=True):
        plan = [row for row in made.done["plan"] if row["what"].startswith(f"{edit.name} ")]
        seen = (made.before[edit.name], made.after[edit.name])
        problems = [*_wrong_rows(edit, plan, *seen, running), *_wrong_effects(edit, rows, *seen, running)]
        wrong += [f"{edit.name}: {problem}" for problem in problems]
    return wrong


def _resolve(value: Value, before: Definitions, after: Definitions) -> t.Any:
    if not isinstance(value, Device):
        return value
    xml = getattr(before if value.when == "before" else after, value.which)
    return shown(xml.elements.get(value.path))


def _wrong_rows(
    edit: Edit, plan: list[dict[str, t.Any]], before: Definitions, after: Definitions, running: bool
) -> t.Iterator[str]:
    """Yield what is wrong with the plan of an edit."""

    def row(place: str, old: Value, new: Value, how: str, why: str) -> dict[str, t.Any]:
        values = (_resolve(value, before, after) for value in (old, new))
        return dict(
            zip(("what", "before", "after", "how", "why"), (f"{edit.name} {place}", *values, how, why), strict=True)
        )

    expected = [row(*one, "defineXML", STORED_WHY) for one in edit.stored]
    if running:
        expected += [row(f"running {place}", old, new, how, RUNNING_WHY) for place, old, new, how in edit.running]
    places = {row["what"].partition(" ")[2]: row for row in plan}
    beside = {place: row for place, row in places.items() if row not in expected and _is_beside(edit, place)}
    found = [row for place, row in places.items() if place not in beside]
    if _sorted(found) != _sorted(expected):
        yield f"rows {found}, not {expected}"
    for place, one in beside.items():
        right = row(
            place,
            before.stored.value(place, after.stored),
            after.stored.value(place, before.stored),
            "defineXML",
            STORED_WHY,
        )
        if one != right:
            yield f"row {one}, not {right}"
    # Every place that libvirt's XML shows to have changed is told by a row, and every row tells of one.
    old, new = before.stored.leaves, after.stored.leaves
    changed = [place for place in {**old, **new} if old.get(place) != new.get(place)]
    result = [place for place in places if not place.startswith("running ")]
    for place in changed:
        if not any(_covers(one, place) for one in result):
            yield f"changed without a row: {place}"
    for one in result:
        if not any(_covers(one, place) for place in changed):
            yield f"a row without a change: {one}"


def _sorted(rows: list[dict[str, t.Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def _is_beside(edit: Edit, place: str) -> bool:
    return any(re.match(pattern, place) for pattern in edit.beside)


def _covers(place: str, leaf: str) -> bool:
    return leaf == place or leaf.startswith((place + "/", place + "@"))


def _wrong_effects(
    edit: Edit, rows: list[dict[str, t.Any]], before: Definitions, after: Definitions, running: bool
) -> t.Iterator[str]:
    """Yield what is wrong with what an edit has left: what is stored, what runs, what waits."""
    planned, done, again = rows
    for one in rows:
        if (one["error"], one["plan_fidelity"]) != (None, "exact"):
            yield f"row {one}"
    for place, value in edit.shows:
        if after.stored.leaves.get(place) != value:
            yield f"stored {place} is {after.stored.leaves.get(place)}, not {value}"
    result = planned["pending"] == done["pending"] or (running and edit.refused)
    if again["pending"] != done["pending"] or not result:
        yield "pending in check mode {}, then {}, again {}".format(*(one["pending"] for one in rows))
    if (after.running is not None) is not running:
        yield f"state {done['state']}"
    elif after.running is not None:
        yield from _wrong_pending(edit, done["pending"], before, after, after.running)
        yield from _wrong_running(edit, [one["what"] for one in done["pending"]], after.running)
    elif done["pending"]:
        yield f"pending {done['pending']}"


def _wrong_pending(
    edit: Edit, pending: list[dict[str, t.Any]], before: Definitions, after: Definitions, running: Xml
) -> t.Iterator[str]:
    expected = []
    for what, runs, stored, reason in edit.pending:
        values = (_resolve(value, before, after) for value in (runs, stored))
        expected.append(dict(zip(("what", "running", "stored", "reason"), (what, *values, reason), strict=True)))
    beside = [one for one in pending if one not in expected and _is_beside(edit, one["what"])]
    found = [one for one in pending if one not in beside]
    if _sorted(found) != _sorted(expected):
        yield f"pending {found}, not {expected}"
    for one in beside:
        what = one["what"]
        right = (running.value(what, after.stored), after.stored.value(what, running))
        if (one["running"], one["stored"], one["reason"]) != (*right, "restart"):
            yield f"pending {one}, not {right}"


def _wrong_running(edit: Edit, waiting: list[str], running: Xml) -> t.Iterator[str]:
    """What was edited is there, or it waits: one of both, and which one is known."""
    for place, value in {**dict(edit.shows), **dict(edit.lives)}.items():
        found = running.leaves.get(place)
        # What waits may be a whole device, or one text beside which an attribute has come: <vcpu current="2">.
        waits = any(what == place or (what not in running.leaves and _covers(what, place)) for what in waiting)
        if (found == value) is waits:
            yield f"running {place} is {found}, stored {value}, pending {waiting}"
    for place, value in edit.lives:
        if running.leaves.get(place) != value:
            yield f"running {place} is {running.leaves.get(place)}, not {value}"
