# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the modules installed for one kernel release: their files, and the parameters that they declare.

Private to the collection. Sources are ``modules.dep``, ``modules.builtin`` and ``modules.builtin.modinfo`` below
``/lib/modules/RELEASE``, and the files of loadable modules.
"""

from __future__ import annotations

import re
import typing as t

from ..._core.root import Root
from .modinfo import SOURCE_NAMES, ParameterInfo, canonical, parameters_of, parse_builtin_modinfo

if t.TYPE_CHECKING:
    from .kernel_param_section import Declared
    from .module_file import ModuleFiles

_BUILT_IN_FILE = r"(?m)([^/\s]+)\.ko$"  # few runs need it: compiled when it is used


class InstalledModules:
    """The modules installed for one kernel release; each file is read once, when first asked for."""

    def __init__(self, root: Root, release: str) -> None:
        self._root = root
        self._directory = f"lib/modules/{release}"
        self._loadable: dict[str, str] | None = None
        self._builtin: dict[str, list[tuple[str, str]]] | None = None
        self._known: dict[str, dict[str, ParameterInfo]] = {}
        self._declared: dict[str, dict[str, Declared]] = {}
        self._module_files: ModuleFiles | None = None

    def file_of(self, module: str) -> str | None:
        """Return the file of a loadable module, relative to the root; None if it does not exist."""
        path = self._paths().get(canonical(module))
        if path is None:
            return None
        return path.lstrip("/") if path.startswith("/") else f"{self._directory}/{path}"

    def names(self) -> list[str]:
        """Return every loadable and built-in module that is named."""
        return sorted({*self._paths(), *self._built_in(), *self._listed_built_in()})

    def is_built_in(self, module: str) -> bool:
        """Tell whether the kernel image holds a module, as far as the installed lists say."""
        return module in self._listed_built_in() or any(name in self._built_in() for name in _sources(module))

    def parameters(self, module: str) -> dict[str, ParameterInfo]:
        """Return the parameters that a module declares; empty where nothing is installed that could tell."""
        if module not in self._known:
            path = self.file_of(module)
            if path is not None:
                # Some are declared without a word for modinfo(8) (kvm_intel.vmentry_l1d_flush).
                silent = {name: ParameterInfo(None, None) for name in self.declared(module)}
                self._known[module] = {**silent, **parameters_of(self._files().entries(path))}
            else:
                entries = [entry for name in _sources(module) for entry in self._built_in().get(name, [])]
                self._known[module] = parameters_of(entries)
        return self._known[module]

    def declared(self, module: str) -> dict[str, Declared]:
        """Return what a loadable module's file says beyond modinfo(8); empty where Python cannot unpack it."""
        if module not in self._declared:
            path = self.file_of(module)
            declared = {} if path is None else self._files().declared(path)
            self._declared[module] = {canonical(name): parameter for name, parameter in declared.items()}
        return self._declared[module]

    def _files(self) -> ModuleFiles:
        if self._module_files is None:
            # Unpacking and ELF are of no use on a host whose parameters are all built in.
            from .module_file import ModuleFiles

            self._module_files = ModuleFiles(self._root)
        return self._module_files

    def _paths(self) -> dict[str, str]:
        """Return the files that ``modules.dep`` names, by module."""
        if self._loadable is None:
            text = self._root.read_text_or(self._directory + "/modules.dep") or ""
            paths = (line.partition(":")[0] for line in text.split("\n"))
            self._loadable = {canonical(path.rpartition("/")[2].partition(".ko")[0]): path for path in paths if path}
        return self._loadable

    def _built_in(self) -> dict[str, list[tuple[str, str]]]:
        if self._builtin is None:
            text = self._root.read_text_or(self._directory + "/modules.builtin.modinfo") or ""
            self._builtin = parse_builtin_modinfo(text.encode("utf-8", "surrogateescape"))
        return self._builtin

    def _listed_built_in(self) -> set[str]:
        return _names(self._root.read_text_or(self._directory + "/modules.builtin") or "")


def _sources(module: str) -> tuple[str, ...]:
    return (module, *SOURCE_NAMES.get(module, ()))


def _names(text: str) -> set[str]:
    """Return the modules that the lines of modules.builtin name."""
    return {canonical(name) for name in re.findall(_BUILT_IN_FILE, text)}
