# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a rendered script without a kernel, and put it on a host.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import typing as t

from ..._core import command
from ..._core.disk import disk_errors
from ..._core.errors import InvalidInput, option_path
from ..._core.plan import Change, Plan, converge
from ..._core.root import Root
from ..._core.write import check_target, make_directories, write_atomic, write_new_place
from ..._kernel.procfs.devices import mounts
from ..language.expressions import similar
from ..language.grammar import Point
from ..language.probe_point import parse_probe_point
from ..language.probe_syntax import first_words
from ..language.probed_modules import named_modules, probed_modules, tapset_aliases
from ..language.tokens import ScriptError
from ..stap_output import BuildFailed, build_failed, read_failure
from .check import Script, check_globals, check_safety, read_script

# File systems that hold what the kernel makes, and no file that a program could create.
_KERNEL_FILE_SYSTEMS = frozenset(
    "binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts fusectl proc pstore securityfs selinuxfs sysfs "
    "tracefs".split()
)
# The least that stap takes for a kernel's build tree: three files, two of them empty.
_STUB_TREE = (".config", "Module.symvers", "include/config/kernel.release")
_STUB_RELEASE = "6.12.0"


@contextlib.contextmanager
def script_option(option: str) -> t.Iterator[None]:
    """Name the option that gave a script in the errors of its text."""
    try:
        yield
    except (ScriptError, BuildFailed) as error:
        if error.fields["line"] is not None:
            error.option = option
        raise


def prepare(
    option: str, name: str, text: str | None, values: t.Mapping[str, t.Any], guru: bool, *, own_tapsets: bool = False
) -> tuple[dict[str, t.Any], str]:
    """Check a rendered script; return its description and who checked it (``stap`` or ``grammar``).

    :param option: the option that gave the script.
    :param own_tapsets: whether own tapsets may declare the arrays of the script.
    :raises ScriptError: wrong at a line and a column.
    :raises InvalidInput: a wrong probe point, an undeclared global variable, a protection switched off.
    :raises BuildFailed: stap's own parser refuses it.
    """
    if text is None:
        raise InvalidInput("_content", None, "The rendered script is missing, because no action plugin rendered it")
    with script_option(option):
        script = read_script(name, text, guru, None if own_tapsets else ())
        check_safety(option, script, guru)
        declared = {key: variable.kind for key, variable in script.globals.items()}
        with option_path("globals"):
            checked = check_globals(name, declared, values)
        aliases = {alias.split(".")[0] for alias in script.aliases}
        for point in script.points:
            _check_point(name, point, aliases)
        checked_by = "grammar"
        if command.find_program("stap") is not None:
            parse_with_stap(name, text, guru)
            checked_by = "stap"
    row = {
        "name": name,
        "text": text,
        "sha256": script.sha256,
        "globals": declared,
        "assigned": checked,
        "probes": list(script.probes),
        "modules": _modules(script),
        "schema": script.schema,
        "guru": guru,
    }
    return row, checked_by


def _modules(script: Script) -> list[str]:
    """Return the modules that a script may probe on any host, ``*`` among them if an alias of a tapset may name any."""
    points = [point.text for point in script.points]
    names = {*probed_modules(script.probes, points), *named_modules(script.text)}
    aliases = tapset_aliases(points)
    if any(name not in script.aliases for name in aliases):
        names.add("*")
    return sorted(names)


def script_name(option: str, path: str) -> str:
    """Return a script's name: the file name of the path in an option, without ``.stp`` and ``.j2``.

    :raises InvalidInput: it is not made of letters, digits, dots, dashes and underscores.
    """
    name = re.sub(r"(\.stp)?(\.j2)?\Z", "", os.path.basename(path))
    if not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", name):
        raise InvalidInput(
            option, path, "The file name of a script takes letters, digits, dots, dashes and underscores only"
        )
    return name


def _check_point(name: str, point: Point, aliases: t.Container[str]) -> None:
    """Check a probe point's form. A group of points, and a family that only some tapset knows, are left to stap."""
    first = re.split(r"[.(\s?!]", point.text, maxsplit=1)[0]
    known = first_words()
    # "perl" and "perf" differ by a quarter, and are no slip for each other.
    if point.group or first in aliases or (first not in known and not similar(first, known, least=0.8)):
        return
    try:
        parse_probe_point(point.text)
    except InvalidInput as error:
        problem = f"The probe point {error.value!r} is invalid. {error.problem}"
        raise ScriptError(name, point.line, point.column, problem, error.candidates) from error


def parse_with_stap(name: str, text: str, guru: bool) -> None:
    """Have stap's own parser read the script, with a stub in the place of a kernel.

    :raises BuildFailed: it is not in the language; with line and column.
    """
    with disk_errors("Nothing was changed."), tempfile.TemporaryDirectory(prefix="tapvirt-") as work:
        tree = os.path.join(work, "tree")
        for file_name in _STUB_TREE:
            make_directories(os.path.dirname(os.path.join(tree, file_name)))
            with open(os.path.join(tree, file_name), "w", encoding="ascii") as stream:
                stream.write(_STUB_RELEASE + "\n" if file_name.endswith("release") else "")
        path = os.path.join(work, name + ".stp")
        write_atomic(path, text.encode("utf-8", "surrogateescape"))
        result = command.run(
            ["stap", "-p1", *(["-g"] if guru else []), "-r", tree, path],
            timeout_seconds=120,
            env={"SYSTEMTAP_DIR": work, "HOME": work},
        )
        if result.rc != 0:
            raise build_failed(name, None, read_failure(name, result.stderr))


def deploy(dest: str | None, text: str, check_mode: bool) -> Plan:
    """Put a script on the host unless it is there already; return the plan that was carried out."""
    if dest is None:
        return Plan()
    if not dest.startswith("/"):
        raise InvalidInput("dest", dest, "The path must be absolute")
    check_target("dest", dest)
    path = dest

    def observe() -> str | None:
        return Root().read_text_or(path)

    def plan(found: str | None) -> Plan:
        if found == text:
            return Plan()
        _check_file_system(path)
        why = "the script is not there" if found is None else "the script differs"
        return Plan([Change(path, found, text, "write", why)])

    def apply(_plan: Plan, _found: str | None) -> None:
        try:
            with disk_errors("Nothing was changed."):
                write_new_place(path, text.encode("utf-8", "surrogateescape"))
        except PermissionError:
            raise
        except OSError as error:
            problem = f"The file cannot be written: {error.strerror}. Nothing was changed."
            raise InvalidInput("dest", path, problem) from error

    return converge(check_mode, observe, plan, apply)[0]


def _check_file_system(path: str) -> None:
    """Check that the file system of a path lets programs create files, so that check mode knows it too.

    :raises InvalidInput: it belongs to the kernel, or it is mounted read-only.
    """
    level = os.path.dirname(os.path.realpath(path))
    while not os.path.isdir(level):
        level = os.path.dirname(level)
    rows = mounts(Root().read_text_or("proc/self/mounts") or "", [])
    inside = [row for row in rows if os.path.join(level, "").startswith(os.path.join(row["target"], ""))]
    # Of several mounts on one directory, the last is seen.
    _length, _number, mount = max(
        ((len(row["target"]), number, row) for number, row in enumerate(inside)),
        default=(0, 0, {"target": "/", "type": None}),
    )
    if mount["type"] in _KERNEL_FILE_SYSTEMS:
        problem = f"{mount['target']} is a {mount['type']} file system of the kernel, where no file can be created."
        raise InvalidInput("dest", path, problem)
    if os.statvfs(level).f_flag & os.ST_RDONLY:
        raise InvalidInput("dest", path, f"The file system of {level} is mounted read-only.")
