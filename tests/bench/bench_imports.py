# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each import inside a function would cost every run: CPU time of a fresh Python, compiling from source.

A host compiles what it is sent. The least of many runs counts: other work only adds to it.
"""

from __future__ import annotations

import ast
import os
import sys
import typing as t

from host import COLLECTION

PREFIX = "ansible_collections.tapvirt.host.plugins."
RUNS = 15


def function_imports() -> t.Iterator[tuple[str, str]]:
    """Yield (module, imported module) for every import inside a function of module_utils."""
    for path in sorted((COLLECTION / "plugins" / "module_utils").rglob("*.py")):
        module = PREFIX + ".".join(path.relative_to(COLLECTION / "plugins").with_suffix("").parts)
        functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
        for node in (node for function in functions for node in ast.walk(function)):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = f"{module.rsplit('.', node.level)[0]}.{node.module or ''}" if node.level else str(node.module)
                yield from ((module, imported(package.rstrip("."), alias.name)) for alias in node.names)


def imported(package: str, name: str) -> str:
    """Return the module that ``from PACKAGE import NAME`` imports."""
    path = COLLECTION.parents[2].joinpath(*package.split("."), name).with_suffix(".py")
    return f"{package}.{name}" if path.is_file() else package


def cpu_ms(statement: str) -> float:
    """Return the CPU time of a fresh Python that runs a statement, in milliseconds."""
    child = os.fork()
    if not child:
        os.execve(sys.executable, [sys.executable, "-B", "-c", statement], ENVIRONMENT)
    _pid, status, usage = os.wait4(child, 0)
    assert status == 0, statement
    return (usage.ru_utime + usage.ru_stime) * 1000


ENVIRONMENT = os.environ | {"PYTHONPATH": str(COLLECTION.parents[2])}
ENVIRONMENT.pop(
    "PYTHONPYCACHEPREFIX", None
)  # the standard library has its bytecode, as on a host; the collection has none
rows = sorted(set(function_imports()))
statements = {f"import {module}" for module, _name in rows} | {f"import {module}, {name}" for module, name in rows}
least = dict.fromkeys(statements, float("inf"))
for _run in range(RUNS):
    for statement in statements:
        least[statement] = min(least[statement], cpu_ms(statement))
print(f"Python {sys.version.split()[0]}: the least CPU time of {RUNS} runs")
print(f"{'ms more':>8}  {'ms alone':>8}  module: import inside a function")
for module, name in rows:
    alone = least[f"import {module}"]
    more = least[f"import {module}, {name}"] - alone
    print(f"{more:8.1f}  {alone:8.1f}  {module.removeprefix(PREFIX)}: {name.removeprefix(PREFIX)}")
