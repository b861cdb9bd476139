# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a module of this collection, as its host sent it: only what the module documents comes through.

A controller acts on keys that no module of ours returns: ``ansible_stats`` sets artifacts of an AWX job, ``add_host``
changes the inventory, facts become variables of the host. A host that is not trusted must not set them.
Private to the collection.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import typing as t

from .edge import ANY, FLAG, NUMBER, TEXT, WHOLE, Kind, Odd, parse

_COMMON = {"changed": FLAG, "failed": FLAG, "msg": TEXT, "warnings": [TEXT]}
# The fields of the errors that modules with an action plugin raise (see _core/errors.py).
_ERROR = {
    **dict.fromkeys(("phase", "program", "service", "outcome", "module", "output"), TEXT),
    **{name: [TEXT] for name in ("releases", "argv", "lost")},
    **dict.fromkeys(("line", "column", "timeout_seconds"), NUMBER),
    **dict.fromkeys(("wanted", "read_back", "not_effective"), ANY),
}
ALWAYS: t.Mapping[str, t.Any] = {**_COMMON, **_ERROR}
"""The keys of every module's result, with their shapes."""
ANSIBLES = frozenset(
    "invocation exception warnings deprecations rc stdout stdout_lines stderr stderr_lines module_stdout module_stderr"
    " ansible_job_id started finished results_file".split()
)
"""The keys that Ansible itself adds to the result of a module that it ran."""
# What _core.plan.Plan.result returns beside the plan.
_DIFF = {"before": TEXT, "after": TEXT}
_MOST_WARNINGS = 20
_WARNING_CHARS = 500
#: The kind of a value, by the type that RETURN documents.
KINDS: dict[str, Kind] = {
    "dict": Kind("a dictionary", lambda value: isinstance(value, t.Mapping)),
    "list": Kind("a list", lambda value: isinstance(value, list)),
    "str": TEXT,
    "bool": FLAG,
    "int": WHOLE,
    "float": NUMBER,
}
# A key of RETURN, and below it its type and the keys that it contains.
_KEY = re.compile(r"^(\w+):\n((?:(?: .*)?\n)+)", re.MULTILINE)
_TYPE = re.compile(r"^  type: (\w+)$", re.MULTILINE)
_CONTAINED = re.compile(r"^    (\w+):$", re.MULTILINE)


@functools.cache
def documented(module: str) -> dict[str, t.Any]:
    """Return the keys that a module's RETURN documents, with the shapes of their values; of facts, with their names."""
    found: dict[str, t.Any] = {}
    for key, text in _KEY.findall(importlib.import_module(module).RETURN.lstrip("\n")):
        named = _TYPE.search(text)
        kind = KINDS[named[1]] if named else ANY
        facts = dict.fromkeys(_CONTAINED.findall(text), KINDS["dict"])
        found[key] = facts if key == "ansible_facts" else kind
    return {**found, "diff": _DIFF} if "plan" in found else found


def parse_json(text: str) -> dict[str, t.Any]:
    """Return the result in a host's output: the last line that is an object.

    :raises Odd: the result is missing, or it is not the JSON that a module writes.
    """
    lines = [line for line in text.split("\n") if line.startswith("{")]
    if not lines:
        raise Odd("has no result", "the output")
    try:
        found = json.loads(lines[-1])
    except (ValueError, RecursionError) as error:
        raise Odd(f"is not the JSON of a module ({str(error)[:100]})", "the result") from None
    return t.cast("dict[str, t.Any]", found)


def keep_documented(module: str, result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what a module documents of a result, with the shapes that it documents.

    :param module: its full name.
    :raises Odd: a documented key holds something else.
    """
    kept: dict[str, t.Any] = parse(result, {**ALWAYS, **documented(module)})
    if kept.get("warnings"):
        kept["warnings"] = [_printable(text)[:_WARNING_CHARS] for text in kept["warnings"][:_MOST_WARNINGS]]
    return kept


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def keep_of_ansible(module: str, result: t.Mapping[str, t.Any], interpreter: str | None = None) -> dict[str, t.Any]:
    """Return the same of a result that Ansible has read: what Ansible added stays, such as the interpreter it found.

    :param interpreter: the name of the fact that Ansible added for the interpreter, if it looked for one.
    :raises Odd: a documented key holds something else.
    """
    # Ansible has read them, into objects since 2.19.
    added = {key: value for key, value in result.items() if key.startswith("_ansible_") or key in ANSIBLES}
    kept = added | keep_documented(module, {key: value for key, value in result.items() if key not in added})
    facts = result.get("ansible_facts")
    found = facts.get(interpreter) if interpreter and isinstance(facts, t.Mapping) else None
    return (
        {**kept, "ansible_facts": {**kept.get("ansible_facts", {}), interpreter: found}} if TEXT.fits(found) else kept
    )
