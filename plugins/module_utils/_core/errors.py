# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to fail: every error of the collection is a ``TapvirtError`` that reads well as one paragraph and as data.

Private to the collection.
"""

from __future__ import annotations

import os
import typing as t

_FEW_NAMES = 2000
_SHOWN_CHARS = 200

#: What a task needs where the user has no permission, as the end of a sentence.
NEEDS_ROOT = "root: run it with become: true"
NEEDS_PATH = "a user with permission for that path, or root: run it with become: true"


class TapvirtError(Exception):
    """A failure with a message for people and fields for programs.

    ``message`` is one paragraph that names the item, the value and the rule. ``fields`` become part of the
    module's result (JSON-clean), next to ``msg``.
    """

    def __init__(self, message: str, **fields: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class InvalidInput(TapvirtError):
    """The user asked for something that cannot be: said before anything changed.

    ``nearest`` lists the right things that look most like the given value (best first, may be empty).
    """

    def __init__(
        self,
        item: str,
        value: t.Any,
        rule: str,
        nearest: t.Sequence[str] = (),
        **fields: t.Any,
    ) -> None:
        shown = repr(value)
        if len(shown) > _SHOWN_CHARS:
            shown = shown[:_SHOWN_CHARS] + "..."
        message = f"{item}: {shown} {rule.rstrip('.')}."
        if nearest:
            message += f" Nearest: {', '.join(nearest)}."
        super().__init__(message, item=item, value=value, rule=rule, nearest=list(nearest), **fields)


class NoEffect(TapvirtError):
    """A step reported success, yet reading the effect back showed something else."""


def nearest_names(name: str, candidates: t.Iterable[str], limit: int = 3) -> list[str]:
    """Return up to ``limit`` candidates that look most like ``name``, best first.

    Fit for 200,000 candidates: only those that share the length (within a third) and, in a long list, half of the
    name's letter pairs are compared letter by letter.
    """
    import difflib  # only a failing run needs it

    candidates = list(candidates)
    few = len(candidates) <= _FEW_NAMES
    wanted = name.lower()
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)}
    slack = max(3, len(wanted) // 3)
    scored: list[tuple[float, str]] = []
    for candidate in candidates:
        if abs(len(candidate) - len(wanted)) > slack:
            continue
        lowered = candidate.lower()
        shared = sum(1 for pair in pairs if pair in lowered)
        if few or shared * 2 >= len(pairs):
            scored.append((-shared, candidate))
    scored.sort()
    return difflib.get_close_matches(
        name, [candidate for _score, candidate in (scored if few else scored[:200])], n=limit, cutoff=0.5
    )


def missing_permission(error: PermissionError, needs: str) -> str:
    """Return one sentence that names the path, the user and what the task needs."""
    name, user = error.filename, os.geteuid()
    what = "a system call" if name is None else os.fsdecode(name) if isinstance(name, (str, bytes)) else f"file {name}"
    if user == 0:
        return f"Even root was refused {what} ({error.strerror}): a security module or an attribute of it forbids that."
    return f"The user with uid {user} was refused {what} ({error.strerror}); the task needs {needs}."
