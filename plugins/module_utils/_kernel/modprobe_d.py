# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that modules get when they are loaded: the view that modprobe has of all its directories, and our own file.

Private to the collection. The rules are those of modprobe.d(5) and of kmod's libkmod-config.c: the first directory
that has a file name wins that name, files are read in the order of their names, options of one module are joined in
that order, what the kernel command line says comes last, and the kernel takes the last of several values.
"""

from __future__ import annotations

import fnmatch
import re
import typing as t

from .._core.root import Root
from .modinfo import canonical
from .words import split_word, split_words

DIRECTORIES = (
    "etc/modprobe.d",
    "run/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
)
#: Our own file; its name sorts after all others that distributions use, so that its lines come last.
OWN_FILE = "etc/modprobe.d/zz-tapvirt.conf"
COMMAND_LINE = "proc/cmdline"
_HEADER = "# Kept by tapvirt.host.kernel_module_param. Lines of other files are never changed.\n"
_BLANKS = " \t"


class Unwritable(ValueError):
    """modprobe.d(5) has no way to write the value; the text says why."""


class Option(t.NamedTuple):
    """One ``name=value`` for a module, and the file (or the kernel command line) that says it. Null: no ``=``."""

    module: str
    name: str
    value: str | None
    source: str


class Line(t.NamedTuple):
    """One logical line of a file: the command and the rest, as it is."""

    command: str
    rest: str
    source: str


def logical_lines(text: str) -> t.Iterator[str]:
    """Yield lines, joined where a backslash ends one, with other backslashes read; comments and empty lines are out."""
    if "\\" in text:
        # With a line end nothing, else what follows it (getline_wrapped in kmod's shared/util.c).
        text = re.sub(r"\\(?:\n|([^\n]?))", r"\1", text)
    for line in text.split("\n"):
        stripped = line.lstrip(_BLANKS)
        if stripped and not line.startswith("#"):
            yield stripped


def parse_lines(text: str, source: str) -> list[Line]:
    """Return the commands of a file."""
    return [Line(*_first_word(line), source=source) for line in logical_lines(text)]


def options_of(lines: t.Iterable[Line]) -> list[Option]:
    """Return what ``options`` lines say, in order."""
    options = []
    for line in lines:
        if line.command != "options":
            continue
        module, rest = _first_word(line.rest)
        # kmod makes every tab a space, also between quotes (kmod_config_add_options).
        for word in split_words(rest.replace("\t", " ")):
            name, value = split_word(word)
            options.append(Option(canonical(module), canonical(name), value, line.source))
    return options


def line_about(lines: t.Iterable[Line], command: str, module: str) -> Line | None:
    """Return the line of a command that modprobe follows when it loads a module: the first that fits its name.

    Most commands take a pattern for a name (fnmatch(3)), and nothing without what comes after it.
    """
    for line in lines:
        if line.command == command:
            name, rest = _first_word(line.rest)
            if command == "blacklist":
                fits = canonical(name) == module
            else:
                fits = bool(rest) and fnmatch.fnmatchcase(module, _canonical_pattern(name))
            if fits:
                return line
    return None


def install_line(lines: t.Sequence[Line], module: str) -> Line | None:
    """Return the line whose command modprobe runs instead of loading a module.

    A module with soft dependencies is loaded all the same (``ignorecmd`` in kmod's libkmod-module.c).
    """
    softdep = line_about(lines, "softdep", module)
    if softdep is not None and set(softdep.rest.split()[1:]) - {"pre:", "post:"}:
        return None
    return line_about(lines, "install", module)


def read_lines(root: Root) -> list[Line]:
    """Return the commands of every effective file, in modprobe's order."""
    files: dict[str, str] = {}
    for directory in DIRECTORIES:
        for name in root.listdir(directory):
            if name.endswith(".conf") and not name.startswith("."):
                files.setdefault(name, "{}/{}".format(directory, name))
    lines: list[Line] = []
    for name in sorted(files):
        text = root.read_text_or(files[name])
        if text is not None:
            lines += parse_lines(text, "/" + files[name])
    return lines


def command_line_options(root: Root) -> list[Option]:
    """Return the ``module.name=value`` words of the running kernel's command line, in order."""
    words = split_words(root.read_text_or(COMMAND_LINE) or "")
    options = []
    for word in words[: words.index("--") if "--" in words else len(words)]:
        name, value = split_word(word)
        module, dot, parameter = name.partition(".")
        options.append(
            Option(
                canonical(module if dot else "kernel"), canonical(parameter if dot else name), value, "/" + COMMAND_LINE
            )
        )
    return options


def effective(options: t.Iterable[Option]) -> dict[tuple[str, str], Option]:
    """Return the option that wins for each module and name: the last."""
    return {(option.module, option.name): option for option in options}


def render(options: t.Mapping[tuple[str, str], str]) -> str:
    """Return our own file's text: one line for each module, sorted; empty when there is nothing to say.

    :raises Unwritable: a value cannot be written.
    """
    modules: dict[str, list[str]] = {}
    for (module, name), value in sorted(options.items()):
        modules.setdefault(module, []).append("{}={}".format(name, quoted(value)))
    if not modules:
        return ""
    return _HEADER + "".join("options {} {}\n".format(module, " ".join(words)) for module, words in modules.items())


def quoted(value: str) -> str:
    """Return a value as modprobe and the kernel read it back.

    :raises Unwritable: quotes cannot be escaped (``next_arg`` in the kernel's lib/cmdline.c), lines cannot be broken.
    """
    if '"' in value:
        raise Unwritable("has a double quote, and modprobe.d(5) cannot escape one")
    if any(sign in value for sign in "\n\t\0"):
        raise Unwritable("has a line end or a tab, and modprobe.d(5) cannot hold one")
    value = value.replace("\\", "\\\\")
    return '"{}"'.format(value) if any(letter.isspace() for letter in value) else value


def _first_word(line: str) -> tuple[str, str]:
    word, _blank, rest = line.replace("\t", " ").partition(" ")
    return word, line[len(line) - len(rest) :].lstrip(_BLANKS)


def _canonical_pattern(pattern: str) -> str:
    """Return a pattern for canonical names; what stands in brackets is kept."""
    return "".join(part if part.startswith("[") else canonical(part) for part in re.split(r"(\[[^]]*\])", pattern))
