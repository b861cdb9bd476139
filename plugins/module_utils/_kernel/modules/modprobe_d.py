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

from ..._core.root import Root
from ..image.cmdline import quote, split_word, split_words
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
# A line with those that a backslash joins to it, as it is in the file.
_RAW_LINE = re.compile(r"(?:\\(?:\n|[^\n]?)|[^\n\\])*\n?")

Key = t.Tuple[str, str]
#: What an option is set to: a value, or ``True`` for a bare name.
Setting = t.Union[str, bool]


class Unwritable(ValueError):
    """modprobe.d(5) has no way to write the value; the text is a clause that says why."""


class Option(t.NamedTuple):
    """One ``name=value`` for a module, and the file (or the kernel command line) that holds it. ``None``: no ``=``."""

    module: str
    name: str
    value: str | None
    source: str

    @property
    def key(self) -> Key:
        """Return what identifies the parameter."""
        return self.module, self.name

    @property
    def word(self) -> str:
        """Return the option as it is written."""
        return self.name if self.value is None else f"{self.name}={self.value}"

    @property
    def setting(self) -> Setting:
        """Return what the option is set to."""
        return True if self.value is None else self.value


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
                files.setdefault(name, f"{directory}/{name}")
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


def effective(options: t.Iterable[Option]) -> dict[Key, Option]:
    """Return the option that wins for each module and name: the last."""
    return {option.key: option for option in options}


def edited(text: str, changes: t.Mapping[Key, Setting | None]) -> str:
    """Return the text of our own file with options set, or (``None``) removed; empty when nothing is left to keep.

    All that the changes do not name stays as it is: comments, other commands, options that somebody wrote by hand.

    :raises Unwritable: a value cannot be written.
    """
    left = {key: None if setting is None else _word(key[1], setting) for key, setting in changes.items()}
    lines = [line for line in _RAW_LINE.findall(text or _HEADER) if line]
    # An option that is named several times is set where it was named last, which is the one that counts.
    lines = [_edited_line(line, left, changes) for line in reversed(lines)][::-1]
    for key, word in sorted(left.items()):
        if word is not None:
            _add(lines, key[0], word)
    kept = "".join(lines)
    return "" if kept.strip() in ("", _HEADER.strip()) else kept


def check_writable(value: str) -> None:
    """Refuse a value that modprobe and the kernel would not read back.

    :raises Unwritable: quotes cannot be escaped (``next_arg`` in the kernel's lib/cmdline.c), lines cannot be broken.
    """
    if '"' in value:
        raise Unwritable("modprobe.d(5) cannot escape a double quote")
    if any(sign in value for sign in "\n\t\0"):
        raise Unwritable("modprobe.d(5) cannot hold a newline, a tab or a zero byte")


def _word(name: str, setting: Setting) -> str:
    if isinstance(setting, bool):
        return name
    check_writable(setting)
    return f"{name}={quote(setting)}"


def _edited_line(line: str, left: dict[Key, str | None], changes: t.Mapping[Key, Setting | None]) -> str:
    """Return a line with the changes of its options; each word of ``left`` that is used is removed there."""
    split = _option_words(line)
    if split is None:
        return line
    module, words = split
    keys = [(canonical(module), canonical(split_word(word)[0])) for word in words]
    if not any(key in changes for key in keys):
        return line
    made: list[str] = []
    for key, word in reversed(list(zip(keys, words))):
        new = left.pop(key, None) if key in changes else word
        made += [] if new is None else [new]
    return _options_line(module, made[::-1]) if made else ""


def _add(lines: list[str], module: str, word: str) -> None:
    """Add an option to the last line of its module, or a line of its own."""
    for index in range(len(lines) - 1, -1, -1):
        split = _option_words(lines[index])
        if split is not None and canonical(split[0]) == module:
            lines[index] = _options_line(split[0], [*split[1], word])
            return
    if lines and not lines[-1].endswith("\n"):
        # After a backslash the first newline only joins an empty line.
        lines[-1] += "\n\n" if lines[-1].endswith("\\") else "\n"
    lines.append(_options_line(module, [word]))


def _option_words(line: str) -> tuple[str, list[str]] | None:
    """Return the module and the words of an ``options`` line as it is in a file; ``None`` for another line."""
    for parsed in parse_lines(line, ""):
        if parsed.command == "options":
            module, rest = _first_word(parsed.rest)
            return module, split_words(rest.replace("\t", " "))
    return None


def _options_line(module: str, words: t.Sequence[str]) -> str:
    return "options " + module + " " + " ".join(words).replace("\\", "\\\\") + "\n"


def _first_word(line: str) -> tuple[str, str]:
    word, _blank, rest = line.replace("\t", " ").partition(" ")
    return word, line[len(line) - len(rest) :].lstrip(_BLANKS)


def _canonical_pattern(pattern: str) -> str:
    """Return a pattern for canonical names; what stands in brackets is kept."""
    return "".join(part if part.startswith("[") else canonical(part) for part in re.split(r"(\[[^]]*\])", pattern))
