# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths of a role's tables in the messages of a module, which gets the tables merged. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ansible.plugins.action.normal import ActionModule

Result = dict[str, t.Any]


class Origin(t.TypedDict):
    """Where an entry of a merged list comes from: ``path`` is its last place, ``keys`` the place of each key."""

    name: str
    path: str
    keys: dict[str, str]


def option_of(origin: Origin, key: str) -> str:
    """Return the place of a key of an entry, or where the entry would have the key."""
    return origin["keys"].get(key, f"{origin['path']}.{key}")


class TableAction(ActionModule):
    """Run the module of the task as Ansible does. A failed result names the options as the user wrote them.

    The role sets a variable of the task, named :attr:`VARIABLE`, to the origins of the entries of :attr:`OPTION`. Only
    variables of the task itself are read, and no facts of the host.
    """

    OPTION: t.ClassVar[str]
    VARIABLE: t.ClassVar[str]

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> Result:
        result = t.cast("Result", super().run(tmp, task_vars))
        origins = self._task.vars.get(self.VARIABLE)
        if origins is None or not result.get("failed"):
            return result
        return name_origins(result, self.OPTION, self._templar.template(origins))


def name_origins(result: Result, option: str, origins: t.Sequence[Origin]) -> Result:
    """Return a failed result with the paths of the tables in place of those of the merged list.

    In ``msg``, the name of the entry follows the path: ``domains[2].xml, line 2`` becomes
    ``domains_host[0].xml, line 2 (db7)``.

    :param option: the module's option that got the merged list; its rows in the result have the same name.
    :param origins: of each entry of the list.
    """
    path = re.compile(rf"(?<![\w.]){option}\[(\d+)\](?:\.(\w+))?((?:\.\w+|\[\d+\])*(?:, line \d+)?)")

    def replace(text: t.Any, with_name: bool = False) -> t.Any:
        def origin_of(match: re.Match[str]) -> str:
            index, key, rest = int(match[1]), match[2], match[3]
            if index >= len(origins):
                return match[0]
            origin = origins[index]
            place = option_of(origin, key) if key else origin["path"]
            return f"{place}{rest} ({origin['name']})" if with_name else place + rest

        return path.sub(origin_of, text) if isinstance(text, str) else text

    def named(row: t.Any) -> t.Any:
        if not isinstance(row, dict) or not isinstance(row.get("error"), dict):
            return row
        return {**row, "error": {key: replace(value) for key, value in row["error"].items()}}

    rows = result.get(option)
    # From ansible-core 2.19 on, an exception repeats the message; without one, Ansible makes it from msg.
    kept = {key: value for key, value in result.items() if key != "exception" or not result.get("error")}
    return {
        **named(kept),
        **({"msg": replace(result["msg"], with_name=True)} if "msg" in result else {}),
        **({option: [named(row) for row in rows]} if isinstance(rows, list) else {}),
    }
