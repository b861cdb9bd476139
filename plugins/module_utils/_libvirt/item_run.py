# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many items of one kind (domains, networks, pools, ...) in one go: observe, plan, apply item by item, verify.

Nothing is applied while any item cannot be planned; an item that fails later does not hide the others.
Private to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from .._core.audit import log_plan
from .._core.errors import InvalidInput, ItemsFailed, NoEffect, TapvirtError, duplicate, option_path
from .._core.plan import Change, Plan
from .connection.connection import Connection, libvirt_errors
from .connection.xml import check_name


class Named(t.Protocol):
    """What is wanted of an item."""

    @property
    def name(self) -> str:
        """Return the item's name."""


class Steps(t.Protocol):
    """What is planned for an item."""

    changes: list[Change]


WantedT = t.TypeVar("WantedT", bound=Named)
ObservedT = t.TypeVar("ObservedT")
PlanT = t.TypeVar("PlanT", bound=Steps)


@dataclasses.dataclass
class Item(t.Generic[WantedT, ObservedT, PlanT]):
    """One item on its way through the run.

    ``path`` is the option of its entry, such as ``domains[0]``; None where the item has no entry. ``observed`` is None
    where nothing of its name exists. Set ``error`` by :meth:`fail`.
    """

    wanted: WantedT
    plan: PlanT
    path: str | None = None
    observed: ObservedT | None = None
    error: TapvirtError | None = None
    done: bool = False

    def changed(self, check_mode: bool) -> bool:
        """Tell whether the item was changed, or would be."""
        return bool(self.plan.changes) and (check_mode or self.done)

    def fail(self, error: TapvirtError | None) -> None:
        """Set ``error``; the path of the item comes before the option of an ``InvalidInput``."""
        if isinstance(error, InvalidInput) and self.path is not None:
            error = error.below(self.path)
        self.error = error


def entry_path(option: str, index: int) -> t.ContextManager[None]:
    """Put the path of an entry, such as ``domains[0]``, before the option of an ``InvalidInput`` from the block.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    """
    return option_path(f"{option}[{index}]") if option else contextlib.nullcontext()


def task_entries(
    params: t.Mapping[str, t.Any], option: str, field: str = "name"
) -> tuple[str, t.Sequence[t.Mapping[str, t.Any]]]:
    """Return the entries of a task, and the option that lists them: empty where the task itself is the only entry.

    :param params: the module's options; Ansible puts those that the task has before the others.
    :param option: the option that lists the entries.
    :param field: the option that a task without that list must have.
    :raises InvalidInput: the task has neither; null is as good as nothing.
    """
    if params[option] is not None:
        return option, params[option]
    if params[field] is not None:
        return "", [params]
    given = next(name for name in params if name in (option, field))
    raise InvalidInput(given, None, f"The task needs either {option} or {field}, and null is no value.")


def check_names(option: str, names: t.Iterable[str], field: str = "name") -> None:
    """Check the names of a task's items.

    :param option: the option that lists the items; empty where the task's own options describe its only item.
    :param field: the entry's option that is the name; empty where the entry itself is the name.
    :raises InvalidInput: a name is not valid, or is in the list twice; with its path, such as ``domains[1].name``.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        with entry_path(option, index):
            check_name(field, name)
            if name in seen:
                raise duplicate(field, name, f"{option}[{seen[name]}]")
        seen[name] = index


class ItemRun(t.Generic[WantedT, ObservedT, PlanT]):
    """Converges items of one kind on one connection; a subclass says how one is observed, planned and applied."""

    #: The name of the rows in the result.
    rows = "items"

    def __init__(self, wanted: t.Iterable[WantedT], no_steps: t.Callable[[], PlanT], option: str | None = None) -> None:
        """Prepare the run; ``wanted`` has an item for each entry of the option, in its order.

        :param option: the option that lists the items, by default the name of the rows; empty where the task's own
            options describe its only item.
        """
        option = self.rows if option is None else option
        self._items = [
            Item[WantedT, ObservedT, PlanT](one, no_steps(), f"{option}[{index}]" if option else None)
            for index, one in enumerate(wanted)
        ]
        self._warnings: list[str] = []

    # ---- what a kind says ----

    def _observe(self, connection: Connection) -> None:
        """Set ``observed`` of every item."""
        raise NotImplementedError

    def _plan(self, item: Item[WantedT, ObservedT, PlanT]) -> PlanT:
        """Return the plan for one item.

        :raises TapvirtError: it cannot be done.
        """
        raise NotImplementedError

    def _apply(self, connection: Connection, item: Item[WantedT, ObservedT, PlanT]) -> None:
        """Carry the plan of one item out; set its ``done`` with the first step that succeeded.

        :raises TapvirtError: a step failed.
        """
        raise NotImplementedError

    def _row(self, item: Item[WantedT, ObservedT, PlanT], check_mode: bool) -> dict[str, t.Any]:
        """Return the item's row in the result."""
        raise NotImplementedError

    # ---- what they share ----

    def _plan_all(self, connection: Connection | None) -> None:
        """Plan every item. Report all refusals before anything is changed."""
        del connection  # a kind may ask libvirt what it would make of things
        for item in self._items:
            if item.error:
                continue
            try:
                item.plan = self._plan(item)
            except TapvirtError as error:
                item.fail(error)

    def apply_all(self, connection: Connection, touched: t.Sequence[Item[WantedT, ObservedT, PlanT]]) -> None:
        """Apply the plans of these items, one after another; an item that fails keeps its error."""
        for item in touched:
            try:
                with libvirt_errors(f"Changing {item.wanted.name}"):
                    self._apply(connection, item)
            except TapvirtError as error:
                item.fail(error)

    def _any_error(self) -> bool:
        return any(item.error for item in self._items)

    def run(self, connection: Connection, check_mode: bool) -> None:
        """Observe and plan; apply and verify unless in check mode or an item cannot be planned."""
        self._observe(connection)
        self._plan_all(connection)
        if check_mode or self._any_error():
            return
        touched = [item for item in self._items if item.plan.changes]
        if touched:
            for item in touched:
                log_plan({self.rows[:-1]: item.wanted.name}, item.plan.changes)
            self.apply_all(connection, touched)
            self._verify(connection, touched)

    def _verify(self, connection: Connection, touched: t.Sequence[Item[WantedT, ObservedT, PlanT]]) -> None:
        """Observe and plan again: what is still to be done had no effect. The rows then tell what is."""
        planned = {item.wanted.name: item.plan for item in touched}
        errors = {item.wanted.name: item.error for item in touched}
        try:
            with libvirt_errors("Reading back what was changed"):
                self._observe(connection)
                self._plan_all(connection)
        except TapvirtError as error:
            # What was done stays told.
            for item in touched:
                item.plan = planned[item.wanted.name]
                item.error = errors[item.wanted.name] or TapvirtError(
                    f"{item.wanted.name} was changed, but it could not be read back. {error.message}"
                )
            return
        for item in touched:
            left = item.plan.changes
            self._keep(item, planned[item.wanted.name])
            item.error = errors[item.wanted.name] or item.error
            if left and not item.error:
                item.error = NoEffect(
                    f"{item.wanted.name} was changed without an error, but reading it back shows no effect: "
                    f"{'; '.join(f'{change.what} ({change.why})' for change in left)}."
                )

    def _keep(self, item: Item[WantedT, ObservedT, PlanT], planned: PlanT) -> None:
        """Put what was planned into the plan made afterwards, which tells what still waits."""
        item.plan.changes = planned.changes

    def result(self, check_mode: bool, with_diff: bool, preparation: t.Iterable[Change] = ()) -> dict[str, t.Any]:
        """Return the module's result; ``preparation`` is what was changed for all items.

        :raises TapvirtError: at least one item failed; the rows of all are in its fields.
        """
        plan = Plan([*preparation, *(change for item in self._items for change in item.plan.changes)])
        result: dict[str, t.Any] = {
            **plan.result(with_diff),
            self.rows: [self._row(item, check_mode) for item in self._items],
        }
        if self._warnings:
            result["warnings"] = self._warnings
        if self._any_error():
            result["changed"] = any(item.done for item in self._items)
            raise ItemsFailed((item.error for item in self._items), **result)
        return result
