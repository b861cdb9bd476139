# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a task that change a module, beside its script: limits, modules for stacks, own tapsets.

Private to the collection.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ..._core.errors import InvalidInput, nearest_names, option_path
from ..language.preprocessor import Target
from ..script_limits import DEFAULT_STRING_LENGTH, SCRIPT_LIMITS
from .tapset import NO_TAPSET, Tapset, read_tapsets

KERNEL = "kernel"
"""What stap calls the kernel itself among the modules for stacks."""
LIMIT_OPTIONS: dict[str, t.Any] = {"type": "dict", "options": {name: {"type": "int"} for name in SCRIPT_LIMITS}}
"""The specification of the option ``limits``."""
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_MOST_MODULES = 100
# A module without max_map_entries allocates what it always did.
_DEFAULT_MEMORY_MB = 256
# SystemTap puts one string on the kernel's stack where it reports an error (runtime/handler-error.h, 5.6), and skips a
# probe unless MINSTACKSPACE bytes are free, 1024 by default.
_DEFAULT_STACK_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options that change a module; equal ones are equal in whichever order a task gave them.

    ``limits`` are values by the name of the option, ``stack_modules`` modules whose symbols a stack may need.
    """

    limits: tuple[tuple[str, int], ...] = ()
    skip_badvars: bool = False
    stack_modules: tuple[str, ...] = ()
    tapset: Tapset = NO_TAPSET

    def options(self) -> list[str]:
        """Return the options of stap, in order."""
        words = [word for macro, value in self._macros() for word in ("-D", f"{macro}={value}")]
        words += ["--skip-badvars"] if self.skip_badvars else []
        return words + [word for name in self.stack_modules for word in ("-d", name)] + self.tapset.options()

    def _macros(self) -> list[tuple[str, int]]:
        given = dict(self.limits)
        if "max_map_entries" in given:
            given.setdefault("max_memory_mb", _DEFAULT_MEMORY_MB)
        macros = [(SCRIPT_LIMITS[name].macro, value * SCRIPT_LIMITS[name].unit) for name, value in given.items()]
        larger = given.get("max_string_length", 0) - DEFAULT_STRING_LENGTH
        if larger > 0:
            macros.append(("MINSTACKSPACE", _DEFAULT_STACK_BYTES + larger))
        return sorted(macros)

    def stack_files(self) -> dict[str, bool]:
        """Return the modules whose debug information stacks need, as :func:`probed_modules` does."""
        return {name: True for name in self.stack_modules if name != KERNEL}


def read_settings(params: t.Mapping[str, t.Any], target: Target) -> Settings:
    """Check the options ``limits``, ``skip_badvars``, ``stack_modules`` and ``tapsets``; read the tapsets.

    :param target: what conditionals of tapsets are evaluated for.
    :raises InvalidInput: one is not acceptable.
    :raises ScriptError: a tapset is not in the language.
    """
    with option_path("limits"):
        limits = read_limits(params["limits"] or {})
    modules = read_stack_modules("stack_modules", params["stack_modules"])
    return Settings(limits, params["skip_badvars"], modules, read_tapsets(params["tapsets"], target))


def read_limits(given: t.Mapping[str, t.Any]) -> tuple[tuple[str, int], ...]:
    """Return the limits that are given, in order; None is the same as none.

    :raises InvalidInput: with the name of the limit as its option: there is no such limit, or it is out of its bounds.
    """
    for name, value in given.items():
        if name not in SCRIPT_LIMITS:
            problem = f"There is no limit of that name; the limits are {', '.join(SCRIPT_LIMITS)}."
            raise InvalidInput(str(name), value, problem, None, nearest_names(str(name), SCRIPT_LIMITS))
        limit = SCRIPT_LIMITS[name]
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not limit.least <= value <= limit.most
        ):
            raise InvalidInput(name, value, f"{name} takes a whole number from {limit.least} to {limit.most}.")
    return tuple(sorted((name, value) for name, value in given.items() if value is not None))


def read_stack_modules(option: str, names: t.Sequence[str]) -> tuple[str, ...]:
    """Return the names of modules, with underscores as the kernel writes them, each once.

    :raises InvalidInput: one is not the name of a module, or there are too many.
    """
    for index, name in enumerate(names):
        if not _MODULE.match(name):
            problem = "The name of a kernel module has letters, digits, dashes and underscores."
            raise InvalidInput(f"{option}[{index}]", name, problem, "Name each module; wildcards are not possible.")
    if len(names) > _MOST_MODULES:
        raise InvalidInput(option, len(names), f"Stacks take the symbols of at most {_MOST_MODULES} modules.")
    return tuple(sorted({name.replace("-", "_") for name in names}))
