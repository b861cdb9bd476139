# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that modules get when they are loaded: the view that modprobe has of all its directories, and our own file.

Private to the collection. The rules are those of modprobe.d(5) and of kmod's libkmod-config.c: the first directory
that has a file name wins that name, files are read in the order of their names, options of one module are joined in
that order, what the kernel command line says comes last, and the kernel takes the last of several values.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.root import Root
from .identity import split_word, split_words
from .modinfo import canonical

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


@dataclasses.dataclass(frozen=True)
class Option:
    """One ``name=value`` for a module, and the file (or the kernel command line) that says it. Null: no ``=``."""

    module: str
    name: str
    value: str | None
    source: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One logical line of a file: the command and the rest, as it is."""

    command: str
    rest: str
    source: str


def logical_lines(text: str) -> t.Iterator[str]:
    """Yield lines joined where a backslash ends one; comment lines and empty ones are left out."""
    held = ""
    for line in text.split("\n"):
        if line.endswith("\\"):
            held += line[:-1]
            continue
        whole, held = held + line, ""
        stripped = whole.lstrip(_BLANKS)
        if stripped and not stripped.startswith("#"):
            yield stripped


def parse_lines(text: str, source: str) -> list[Line]:
    """Return the commands of a file."""
    lines = []
    for text_line in logical_lines(text):
        words = text_line.split(None, 1)
        lines.append(Line(words[0], words[1] if len(words) > 1 else "", source))
    return lines


def options_of(lines: t.Iterable[Line]) -> list[Option]:
    """Return what ``options`` lines say, in order."""
    options = []
    for line in lines:
        fields = line.rest.split(None, 1) if line.command == "options" else []
        if len(fields) < 2:
            continue
        for word in split_words(fields[1]):
            name, value = split_word(word)
            options.append(Option(canonical(fields[0]), canonical(name), value, line.source))
    return options


def read_lines(root: Root) -> list[Line]:
    """Return the commands of every effective file, in modprobe's order."""
    files: dict[str, str] = {}
    for directory in DIRECTORIES:
        for name in root.listdir(directory):
            if name.endswith(".conf"):
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
    if "\n" in value or "\0" in value:
        raise Unwritable("has a line end, and modprobe.d(5) cannot hold one")
    if value.endswith("\\"):
        raise Unwritable("ends in a backslash, and modprobe.d(5) would join the next line")
    return '"{}"'.format(value) if any(letter.isspace() for letter in value) else value
