# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of many items when some of them, or the look afterwards, fail."""

from __future__ import annotations

import dataclasses
import typing as t

import libvirt
import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.plan import Change
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.item_run import Item, ItemRun, check_names


@dataclasses.dataclass
class Wanted:
    name: str


@dataclasses.dataclass
class Plan:
    changes: list[Change] = dataclasses.field(default_factory=list)


class Run(ItemRun[Wanted, str, Plan]):
    """Items that have to be done once; the names in ``wrong`` fail at a step, by its name."""

    def __init__(self, names: t.Sequence[str], **wrong: str) -> None:
        super().__init__([Wanted(name) for name in names], Plan)
        self._wrong = wrong
        self._looks = 0

    def _fail(self, step: str, name: str) -> None:
        if self._wrong.get(step) == name:
            libvirt.open("test:///default").lookupByName(step)

    def _observe(self, connection: t.Any) -> None:
        self._looks += 1
        self._fail("observe", str(self._looks))

    def _plan(self, item: Item[Wanted, str, Plan]) -> Plan:
        if self._wrong.get("plan") == item.wanted.name:
            raise InvalidInput("state", "odd", "No plan leads to this state.")
        return Plan([] if item.done else [Change(item.wanted.name, None, "done", "hand", "as wanted")])

    def _apply(self, connection: t.Any, item: Item[Wanted, str, Plan]) -> None:
        self._fail("apply", item.wanted.name)
        item.done = True

    def _row(self, item: Item[Wanted, str, Plan], check_mode: bool) -> dict[str, t.Any]:
        return {"name": item.wanted.name, "changed": item.changed(check_mode), "error": item.error}


def fields(run: Run, check: bool = False) -> dict[str, t.Any]:
    run.run(None, check)
    with pytest.raises(TapvirtError) as failed:
        run.result(check, False)
    return failed.value.fields


def test_nothing_is_changed_where_one_cannot_be_planned_and_the_rows_say_so() -> None:
    result = fields(Run(["a", "b"], plan="b"))
    assert result["changed"] is False
    assert [row["changed"] for row in result["items"]] == [False, False]
    would = fields(Run(["a", "b"], plan="b"), check=True)
    assert [row["changed"] for row in would["items"]] == [True, False]


def test_path_of_item_comes_before_option_once() -> None:
    run = Run(["a", "b"], plan="b")
    run.run(None, False)
    with pytest.raises(TapvirtError, match="^Invalid value 'odd' for items.1..state: No plan leads to this state.$"):
        run.result(False, False)


@pytest.mark.parametrize(
    ("option", "field", "names", "message"),
    [
        (
            "domains",
            "name",
            ["a", "b", "a"],
            "Invalid value 'a' for domains[2].name: domains[0] has the same name.",
        ),
        ("names", "", ["a", "a"], "Invalid value 'a' for names[1]: names[0] has the same name."),
        (
            "names",
            "",
            ["a", " b"],
            "Invalid value ' b' for names[1]: A name has 1 to 200 printable characters, and no space at its start or "
            "end.",
        ),
    ],
)
def test_wrong_name_has_its_path(option: str, field: str, names: list[str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_names(option, names, field)
    assert caught.value.message == message


def test_what_was_done_is_reported_although_nobody_answers_afterwards() -> None:
    result = fields(Run(["a", "b"], observe="2", apply="b"))
    assert result["changed"] is True
    assert [row["changed"] for row in result["items"]] == [True, False]
    assert [change["what"] for change in result["plan"]] == ["a", "b"]
    first, second = (row["error"].message for row in result["items"])
    assert first.startswith(
        "a was changed, but it could not be read back. Reading back what was changed failed: Domain not found"
    )
    assert second.startswith("Changing b failed: Domain not found")
