# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: what will change, computed before anything does, and the order observe, plan, apply, verify.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from .errors import MASK, NoEffect, TapvirtError


@dataclasses.dataclass(frozen=True)
class Change:
    """One step of a plan.

    ``what`` names the item (``kvm.halt_poll_ns``), ``before`` and ``after`` are its values (JSON-clean; null: absent),
    ``how`` the means (``sysfs``, ``defineXML``), ``why`` the reason in words. The values of a ``secret`` are not shown.
    """

    what: str
    before: t.Any
    after: t.Any
    how: str
    why: str
    secret: bool = False

    def row(self) -> dict[str, t.Any]:
        """Return the step as it appears in a module's result."""
        return {
            "what": self.what,
            "before": self._shown(self.before),
            "after": self._shown(self.after),
            "how": self.how,
            "why": self.why,
        }

    def _shown(self, value: t.Any) -> t.Any:
        return MASK if self.secret and value is not None else value


class Plan:
    """A list of ``Change``: ``changed``, the returned rows, the diff and check mode all come from it."""

    def __init__(self, changes: t.Iterable[Change] = ()) -> None:
        self.changes = list(changes)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __iter__(self) -> t.Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def rows(self) -> list[dict[str, t.Any]]:
        """Return the steps as JSON-clean rows."""
        return [change.row() for change in self.changes]

    def diff(self) -> dict[str, str]:
        """Return Ansible's diff: one line an item, or a block where a value has several lines."""
        rows = self.rows()
        return {
            "before": "".join(_diff_text(row["what"], row["before"]) for row in rows),
            "after": "".join(_diff_text(row["what"], row["after"]) for row in rows),
        }

    def result(self, with_diff: bool) -> dict[str, t.Any]:
        """Return the part of a module's result that every changing module shares.

        The diff is included only on request (``module._diff``): Ansible shows every diff that a result contains.
        """
        result: dict[str, t.Any] = {"changed": bool(self), "plan": self.rows()}
        if with_diff:
            result["diff"] = self.diff()
        return result


def _diff_text(what: str, value: t.Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if "\n" in text:
        return what + ":\n" + text.rstrip("\n") + "\n"
    return f"{what}: {text}\n"


Observed = t.TypeVar("Observed")


def converge(
    check_mode: bool,
    observe: t.Callable[[], Observed],
    plan: t.Callable[[Observed], Plan],
    apply: t.Callable[[Plan, Observed], None],
    verify: t.Callable[[Observed], Plan] | None = None,
    undo: t.Callable[[Exception], TapvirtError] | None = None,
) -> tuple[Plan, Observed]:
    """Observe, plan, apply, verify; return the plan and the last state that was observed.

    In check mode it stops after the plan. ``verify`` defaults to ``plan``: what a fresh look would still change is
    what did not take effect. ``undo`` puts back what ``apply`` did when verifying fails; it returns the error to raise.

    :raises NoEffect: a step was carried out without the effect that was planned.
    """
    observed = observe()
    planned = plan(observed)
    if check_mode or not planned:
        return planned, observed
    apply(planned, observed)
    try:
        observed = observe()
        _check_effect(planned, (verify or plan)(observed))
    except (OSError, TapvirtError) as error:
        if undo is None:
            raise
        raise undo(error) from error
    return planned, observed


def _check_effect(planned: Plan, left: Plan) -> None:
    if left:
        raise NoEffect(
            "Every step reported success, but reading back shows no effect: "
            f"{'; '.join(f'{change.what} ({change.why})' for change in left)}.",
            plan=planned.rows(),
            not_effective=left.rows(),
            changed=True,
        )
