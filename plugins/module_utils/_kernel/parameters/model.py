# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is: module parameters in sysfs, in modprobe.d and on the command line, and what earlier runs left behind.

Private to the collection. Nothing here writes.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import string
import typing as t

from ..._core.errors import InvalidInput, duplicate, nearest_names, option_path
from ..._core.root import Root
from ..modules import modprobe_d
from ..modules.installed import InstalledModules
from ..modules.modinfo import canonical
from .quirks import MORE_THAN_DECLARED, READ_BACK, unsafe_built_in
from .values import Kind, Value, known_kind, listed_words, read_value

if t.TYPE_CHECKING:
    from ..modules.initramfs import Image

_NAME_CHARS = frozenset(string.ascii_letters + string.digits + "_.-")
# Patterns that few runs need: compiled when they are used.
_CRYPTO_ALIAS = r"(?m)^alias crypto-(\S+) "
_CRYPTO_NAME = r"(?m)^name\s*:\s*(\S+)$"
_BUILT_IN_FILE = r"(?m)([^/\s]+)\.ko$"

Key = t.Tuple[str, str]


class Wanted(t.NamedTuple):
    """One entry of the option ``params``, with the names as sysfs has them; ``path`` is its place: ``params[0]``.

    ``given`` are the module's and the parameter's name as the user wrote them.
    """

    path: str
    module: str
    name: str
    value: t.Any
    runtime: bool
    persist: str
    read_back: str
    reload: str = "never"
    allow_taint: bool = False
    given: Key | None = None

    @property
    def key(self) -> Key:
        """Return what identifies the parameter."""
        return self.module, self.name

    @property
    def label(self) -> str:
        """Return the parameter's name as the command line and people write it."""
        return f"{self.module}.{self.name}"

    def refusal(
        self, option: str, problem: str, hint: str | None = None, candidates: t.Iterable[str] = ()
    ) -> InvalidInput:
        """Return the error for one option of this entry."""
        return InvalidInput(f"{self.path}.{option}", getattr(self, option), problem, hint, candidates)


@dataclasses.dataclass(frozen=True)
class LoadedModule:
    """A module that is loaded, and why it cannot be loaded again, in words (empty: it can)."""

    reload_blockers: list[str]


class Item(t.NamedTuple):
    """One parameter as it is. ``text`` is null where there is no file, or where it cannot be read (``mode`` tells).

    ``choices`` are the only values that make sense; null: the type says it all. ``unsafe``: setting it is known to
    taint the kernel. ``strict``: its module declares the type, and the kernel takes nothing else.
    """

    module: str
    name: str
    kind: Kind
    mode: int | None
    text: str | None
    loaded: bool
    built_in: bool
    word_bits: int
    choices: t.Collection[str] | None
    unsafe: bool = False
    strict: bool = False

    @property
    def key(self) -> Key:
        """Return what identifies the parameter."""
        return self.module, self.name

    @property
    def label(self) -> str:
        """Return the parameter's name as the command line and people write it."""
        return f"{self.module}.{self.name}"

    @property
    def writable(self) -> bool:
        """Tell whether the parameter's file can be written (by root; its mode binds root too)."""
        return self.mode is not None and bool(self.mode & 0o222)

    def read_back(self, asked: str) -> str:
        """Return what to expect when a value is read back: what was asked for, or with ``auto`` what is known.

        ``auto`` remains where the kernel may make another number of a number.
        """
        if asked != "auto" or self.key in READ_BACK:
            return READ_BACK.get(self.key, asked) if asked == "auto" else asked
        if self.mode is not None and not self.mode & 0o444:
            return "opaque"
        if self.kind.word == "selector":
            return "selector"
        return "auto" if self.kind.is_number or self.kind.word == "opaque" else "exact"

    @property
    def current(self) -> Value | None:
        """Return the running value; null where it cannot be read."""
        return None if self.text is None else read_value(self.kind, self.text, self.word_bits)

    @property
    def command_line_word(self) -> str:
        """Return the name by which the kernel command line sets it: core parameters have no prefix."""
        return self.name if self.module == "kernel" else self.label


@dataclasses.dataclass(frozen=True)
class Observed:
    """Everything that a plan depends on.

    ``own`` are the options of our own file, ``file_options`` and ``command_line`` the winning ones of all files and of
    the kernel command line, ``boot_options`` all of the latter. ``load_options`` are, for each loadable module, all
    options that modprobe hands over with it, in order, with the parameters that they set. ``load_flaws`` says for
    each which of them the kernel refuses, in sentences.
    """

    items: dict[Key, Item]
    own: dict[Key, modprobe_d.Option]
    file_options: dict[Key, modprobe_d.Option]
    command_line: dict[Key, modprobe_d.Option]
    boot_options: list[modprobe_d.Option]
    load_options: dict[str, list[tuple[modprobe_d.Option, Item]]]
    lines: list[modprobe_d.Line]
    journal: dict[str, t.Any]
    boot_id: str
    tainted: int
    modules: t.Mapping[str, LoadedModule] = dataclasses.field(default_factory=dict)
    image: Image | None = None
    load_flaws: t.Mapping[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def originals(self) -> dict[str, str]:
        """Return what parameters were before they were first set: label to value."""
        return dict(self.journal.get("originals", {}))

    @property
    def interrupted(self) -> dict[str, str]:
        """Return what a run of this boot had begun and not ended: label to the value before it."""
        if self.journal.get("boot_id") != self.boot_id:
            return {}
        return dict(self.journal.get("in_progress", {}))

    @property
    def interrupted_lines(self) -> dict[Key, modprobe_d.Setting | None]:
        """Return what a run had begun and not ended to keep in our own file, with what it was before (null: nothing).

        Unlike a running value, a file outlives the boot.
        """
        rows = self.journal.get("persisting", {}).items()
        return {(label.partition(".")[0], label.partition(".")[2]): before for label, before in rows}


def read_only_reason(item: Item) -> str:
    """Return why a parameter cannot be set while the kernel runs, as a clause about it."""
    if not item.loaded:
        return "its module is not loaded"
    if item.mode is None:
        return "it has no file in sysfs"
    return f"it is read-only (mode {item.mode:04o} in sysfs)"


def read_only_hint(item: Item) -> str:
    """Return how a parameter that cannot be set while the kernel runs can be set."""
    if item.built_in:
        return f"Set {item.command_line_word}=VALUE on the kernel command line (persist: command_line)."
    return "Set persist to modprobe_d: the value takes effect when the module is loaded."


def parameter_file(module: str, name: str) -> str:
    """Return where sysfs has a parameter, relative to the root."""
    return f"sys/module/{module}/parameters/{name}"


def wanted_list(entries: t.Sequence[t.Mapping[str, t.Any]], state: str) -> list[Wanted]:
    """Return the entries of ``params`` with canonical names.

    :raises InvalidInput: a name cannot be one, a value is missing, or a parameter is named twice.
    """
    wanted: dict[Key, Wanted] = {}
    for index, entry in enumerate(entries):
        path = f"params[{index}]"
        for key, noun in (("module", "module"), ("name", "parameter")):
            if not _NAME_CHARS.issuperset(entry[key]) or entry[key][:1] in ("", ".", "-"):
                problem = (
                    f"The name of a {noun} consists of letters, digits, dots, underscores and hyphens, and does not "
                    "begin with a dot or a hyphen."
                )
                raise InvalidInput(f"{path}.{key}", entry[key], problem)
        item = Wanted(
            path=path,
            module=canonical(entry["module"]),
            name=canonical(entry["name"]),
            value=entry["value"],
            runtime=entry["runtime"],
            persist=entry["persist"],
            read_back=entry["read_back"],
            reload=entry.get("reload", "never"),
            allow_taint=entry.get("allow_taint", False),
            given=(entry["module"], entry["name"]),
        )
        if state == "present" and item.reload != "never" and item.persist not in ("auto", "modprobe_d"):
            problem = f"A reload gives {item.label} the value that modprobe.d has, and persist is {item.persist}."
            raise item.refusal("reload", problem, "Set persist to auto or modprobe_d.")
        if state == "present" and item.value is None:
            raise item.refusal("value", f"{item.label} needs a value, because state is present.")
        if item.key in wanted:
            raise duplicate(f"{path}.name", entry["name"], wanted[item.key].path, "module and name")
        wanted[item.key] = item
    return list(wanted.values())


class Reader:
    """Observes parameters; module files and lists are read once however often it observes."""

    def __init__(self, root: Root, arch: str) -> None:
        self.root = root
        release = (root.read_text_or("proc/sys/kernel/osrelease") or "").strip()
        self.installed = InstalledModules(root, release)
        self.release = release
        self._word_bits = 64 if "64" in arch or arch == "s390x" else 32

    def observe(
        self, keys: t.Iterable[Key], journal: dict[str, t.Any], given: t.Mapping[Key, Key | None] | None = None
    ) -> Observed:
        """Return the state of these parameters and of the ones that an interrupted run names.

        :param given: the names as the user wrote them, by key.
        :raises InvalidInput: a module or a parameter does not exist; ``keys`` are those of the option ``params``.
        """
        boot_id = (self.root.read_text_or("proc/sys/kernel/random/boot_id") or "").strip()
        lines = modprobe_d.read_lines(self.root)
        options = modprobe_d.options_of(lines)
        boot_options = modprobe_d.command_line_options(self.root)
        own = modprobe_d.options_of(
            modprobe_d.parse_lines(self.root.read_text_or(modprobe_d.OWN_FILE) or "", "/" + modprobe_d.OWN_FILE)
        )
        observed = Observed(
            items={},
            own=modprobe_d.effective(own),
            file_options=modprobe_d.effective(options),
            command_line=modprobe_d.effective(boot_options),
            boot_options=boot_options,
            load_options={},
            lines=lines,
            journal=journal,
            boot_id=boot_id,
            tainted=int(self.root.read_text_or("proc/sys/kernel/tainted") or "0"),
        )
        for index, (module, name) in enumerate(keys):
            with option_path(f"params[{index}]"):
                self._check_names(module, name, (given or {}).get((module, name)) or (module, name))
            observed.items[module, name] = self.item(module, name)
        for label in observed.interrupted:
            module, _dot, name = label.partition(".")
            observed.items.setdefault((module, name), self.item(module, name))
        for module in {item.module for item in observed.items.values() if not item.built_in}:
            observed.load_options[module] = [
                (option, self.item(module, option.name))
                for option in [*options, *boot_options]
                if option.module == module and self._has(module, option.name)
            ]
        return observed

    def items_of(self, module: str) -> dict[str, Item]:
        """Return the parameters of a loaded module that can be read, by name."""
        names = self.root.listdir(f"sys/module/{module}/parameters")
        items = {name: self.item(module, name) for name in names}
        return {name: item for name, item in items.items() if item.text is not None}

    def aliases(self) -> str:
        """Return the text of ``modules.alias``; empty if the file does not exist."""
        return self.root.read_text_or(f"lib/modules/{self.release}/modules.alias") or ""

    def _has(self, module: str, name: str) -> bool:
        """Return whether a module has a parameter; the kernel ignores options that are not parameters."""
        return name in self.installed.parameters(module) or self.root.exists(parameter_file(module, name))

    def _check_names(self, module: str, name: str, given: Key) -> None:
        """Refuse what does not exist, with the nearest names that do; ``given`` is what the user wrote.

        :raises InvalidInput: no such module, or no such parameter.
        """
        if self.root.exists(parameter_file(module, name)):
            return
        in_sysfs = self.root.listdir("sys/module")
        if module not in in_sysfs and self.installed.file_of(module) is None and not self.installed.is_built_in(module):
            nearest = _nearest(module, {*in_sysfs, *self.installed.names()})
            problem = f"No such module is loaded, built into the kernel, or installed for {self.release}."
            raise InvalidInput("module", given[0], problem, candidates=nearest)
        if name not in self.installed.parameters(module):
            names = {*self.root.listdir(f"sys/module/{module}/parameters"), *self.installed.parameters(module)}
            problem = f"The module {module} has no {'such parameter' if names else 'parameters'}."
            raise InvalidInput("name", given[1], problem, candidates=_nearest(name, names))

    def item(self, module: str, name: str, kind: Kind | None = None) -> Item:
        """Return one parameter as it is; ``kind`` instead of what is known of its type."""
        path = self.root.path(parameter_file(module, name))
        info = self.installed.parameters(module).get(name)
        text = self.root.read_text_or(parameter_file(module, name))
        loadable = self.root.exists(f"sys/module/{module}/initstate") or bool(self.installed.file_of(module))
        kind = kind or known_kind(info.type if info else None, text)
        if (module, name) in MORE_THAN_DECLARED:
            kind = Kind("opaque", "sysfs")
        declared = self.installed.declared(module).get(name)
        if declared is not None and declared.limit is not None:
            kind = kind._replace(limit=declared.limit)
        return Item(
            module=module,
            name=name,
            kind=kind,
            mode=_mode(path),
            text=text,
            loaded=text is not None or self.root.exists("sys/module/" + module),
            built_in=not loadable,
            word_bits=self._word_bits,
            choices=self._compressors() if (module, name) == ("zswap", "compressor") else listed_words(kind, text),
            unsafe=self._unsafe(module, name),
            strict=kind.source == "modinfo" and (declared is None or declared.standard),
        )

    def _unsafe(self, module: str, name: str) -> bool:
        """Tell whether setting a parameter taints the kernel: by its module's own file, or by what is known."""
        if self.installed.file_of(module) is None:
            return unsafe_built_in(module, name)
        declared = self.installed.declared(module).get(name)
        return unsafe_built_in(module, name) if declared is None else declared.unsafe

    def _compressors(self) -> set[str]:
        """Return the algorithms that the kernel has or could load: zswap takes any name as long as it is off."""
        directory = f"lib/modules/{self.release}/"
        found = set(re.findall(_CRYPTO_NAME, self.root.read_text_or("proc/crypto") or ""))
        found |= set(re.findall(_CRYPTO_ALIAS, self.aliases()))
        return found | set(re.findall(_BUILT_IN_FILE, self.root.read_text_or(directory + "modules.builtin") or ""))


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _nearest(name: str, names: t.Iterable[str]) -> list[str]:
    return nearest_names(name, sorted(names))
