# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a rendered script without a kernel, and put it on a host.

Private to the collection.
"""

from __future__ import annotations

import os
import re
import tempfile
import typing as t

from .._core import command
from .._core.errors import InvalidInput
from .._core.plan import Change, Plan, converge
from .._core.root import Root
from .._core.write import write_atomic
from .build import build_failed
from .probes import parse_probe_point, split_probe_points
from .script import ScriptError, check_globals, check_safety, read_script

# The least that stap takes for a kernel's build tree: three files, two of them empty.
_STUB_TREE = (".config", "Module.symvers", "include/config/kernel.release")
_STUB_RELEASE = "6.12.0"


def prepare(path: str, text: str | None, values: t.Mapping[str, t.Any], guru: bool) -> tuple[dict[str, t.Any], str]:
    """Check a rendered script; return its description and who checked it (``stap`` or ``tokens``).

    :raises ScriptError: wrong at a line and a column.
    :raises InvalidInput: a wrong probe point, an undeclared global variable, a protection switched off.
    :raises BuildFailed: stap's own parser refuses it.
    """
    if text is None:
        raise InvalidInput("content", None, "is missing: the action plugin renders the template on the controller")
    name = script_name(path)
    script = read_script(name, text)
    check_safety(script, guru)
    declared = {key: variable.kind for key, variable in script.globals.items()}
    checked = check_globals(name, declared, values)
    if "%(" not in text:
        for probe in script.probes:
            for point in split_probe_points(probe):
                _check_point(name, text, point)
    checked_by = "tokens"
    if command.find_program("stap") is not None:
        parse_with_stap(name, text)
        checked_by = "stap"
    row = {
        "name": name,
        "text": text,
        "sha256": script.sha256,
        "globals": declared,
        "assigned": checked,
        "probes": list(script.probes),
        "schema": script.schema,
        "guru": guru,
    }
    return row, checked_by


def script_name(path: str) -> str:
    """Return a script's name: its file name without ``.stp`` and ``.j2``.

    :raises InvalidInput: it is not made of letters, digits, dots, dashes and underlines.
    """
    name = re.sub(r"(\.stp)?(\.j2)?$", "", os.path.basename(path))
    if not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*$", name):
        raise InvalidInput("script", path, "needs a file name of letters, digits, dots, dashes and underlines")
    return name


def _check_point(name: str, text: str, point: str) -> None:
    try:
        parse_probe_point(point)
    except InvalidInput as error:
        at = max(text.find(point.split("(", maxsplit=1)[0]), 0)
        line = text.count("\n", 0, at) + 1
        raise ScriptError(name, line, at - (text.rfind("\n", 0, at) + 1) + 1, error.message.rstrip(".")) from error


def parse_with_stap(name: str, text: str) -> None:
    """Have stap's own parser read the script, with a stub in the place of a kernel.

    :raises BuildFailed: it is not in the language; with line and column.
    """
    with tempfile.TemporaryDirectory(prefix="tapvirt-") as work:
        tree = os.path.join(work, "tree")
        for file_name in _STUB_TREE:
            os.makedirs(os.path.dirname(os.path.join(tree, file_name)), exist_ok=True)
            with open(os.path.join(tree, file_name), "w", encoding="ascii") as stream:
                stream.write(_STUB_RELEASE + "\n" if file_name.endswith("release") else "")
        path = os.path.join(work, name + ".stp")
        write_atomic(path, text.encode("utf-8", "surrogateescape"))
        result = command.run(
            ["stap", "-p1", "-r", tree, path], timeout_seconds=120, env={"SYSTEMTAP_DIR": work, "HOME": work}
        )
        if result.rc != 0:
            raise build_failed(name, None, result.stderr)


def deploy(dest: str | None, text: str, check_mode: bool) -> Plan:
    """Put a script on the host unless it is there already; return the plan that was carried out."""
    if dest is None:
        return Plan()
    if not dest.startswith("/"):
        raise InvalidInput("dest", dest, "must be an absolute path")
    path = dest

    def observe() -> str | None:
        return Root().read_text_or(path)

    def plan(found: str | None) -> Plan:
        if found == text:
            return Plan()
        why = "the script is not there" if found is None else "the script differs"
        return Plan([Change(path, found, text, "write", why)])

    def apply(_plan: Plan, _found: str | None) -> None:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        write_atomic(path, text.encode("utf-8", "surrogateescape"))

    return converge(check_mode, observe, plan, apply)[0]
