# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to fail: every error of the collection is a ``TapvirtError`` that reads well as one paragraph and as data.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import typing as t

_FEW_NAMES = 2000
_SHOWN_CHARS = 200
_SHOWN_LEVELS = 8
_LARGEST = 1 << 128
# Patterns that few runs need: compiled when they are used.
#: The password of a URI. It ends at the last "@", even if it contains characters that should have been escaped. A port
#: that a path follows is not a password.
URI_PASSWORD = r"(?s)(://[^/:?#]*):((?!\d+[/?]).*|[^?]*)@"
_URI_START = r"\s*[A-Za-z][A-Za-z0-9+.-]*://"
# The same in a sentence, where a space ends the URI; and the key of a volume of Ceph (rbd:POOL/IMAGE:key=KEY).
_PASSWORD_IN_TEXT = r"(://[^/:?#\s]*):((?!\d+[/?\s])\S*|[^?\s]*)@"
_RBD_KEY = r"(\brbd:\S*?:key=)[^:\s'\"]+"
#: What is shown in the place of a password.
MASK = "********"

#: What a task needs where the user has no permission, as the end of a sentence.
NEEDS_ROOT = "root: run it with become: true"
NEEDS_PATH = "a user with permission for that path, or root: run it with become: true"


class TapvirtError(Exception):
    """A failure with a message for people and fields for programs.

    ``message`` is one paragraph. ``fields`` become part of the module's result (JSON-clean), next to ``msg``.
    """

    def __init__(self, message: str, **fields: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result or of a failed item: ``{option, value, problem, hint, candidates}``."""
        return {"option": None, "value": None, "problem": self.message, "hint": None, "candidates": []}


class InvalidInput(TapvirtError):
    """An option has a value that cannot be accepted; nothing was changed.

    ``option`` is the path of the option, such as ``params[0].value``; ``problem`` a whole sentence with a subject;
    ``hint`` a whole sentence that says what to do; ``candidates`` the right values that resemble the given one, best
    first (one that equals it is left out); ``line`` the line of a multi-line value, from 1. Neither the message nor the
    row shows a password.
    """

    def __init__(
        self,
        option: str,
        value: t.Any,
        problem: str,
        hint: str | None = None,
        candidates: t.Iterable[str] = (),
        *,
        line: int | None = None,
        **fields: t.Any,
    ) -> None:
        self.option = option
        self.value = value
        self.problem = as_sentence(mask_secrets(problem))
        self.hint = None if hint is None else as_sentence(mask_secrets(hint))
        self.candidates = [candidate for candidate in candidates if candidate != value]
        self.line = line
        super().__init__(self._message(), **fields)

    def below(self, path: str) -> InvalidInput:
        """Return the same error for the option at ``path``, which contains this option: ``params[0]``."""
        option = path + self.option if self.option.startswith("[") else f"{path}.{self.option}".rstrip(".")
        found = type(self)(option, self.value, self.problem, self.hint, self.candidates, line=self.line, **self.fields)
        return found.with_traceback(self.__traceback__)

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of a result or of a failed item: ``{option, value, problem, hint, candidates}``."""
        return {
            "option": self.option,
            "value": _row_value(self.value),
            "problem": self.problem,
            "hint": self.hint,
            "candidates": self.candidates,
        }

    def _message(self) -> str:
        place = self.option if self.line is None else f"{self.option}, line {self.line}"
        shown = _shown_value(self.value)
        parts = [f"Invalid value{f' {shown}' if shown else ''} for {place}: {self.problem}"]
        if self.hint is not None:
            parts.append(self.hint)
        return " ".join(parts) + did_you_mean(self.candidates)


class InvalidTaskOption(InvalidInput):
    """An option of the whole task cannot be accepted for one of its items; the path of the item does not precede it."""

    def below(self, path: str) -> InvalidInput:
        """Return the same error: the option is not below an item."""
        del path
        return self


@contextlib.contextmanager
def option_path(path: str) -> t.Iterator[None]:
    """Put ``path`` before the option of an ``InvalidInput`` from the block: ``value`` becomes ``params[0].value``."""
    try:
        yield
    except InvalidInput as error:
        raise error.below(path) from error.__cause__


def error_row(error: TapvirtError | None) -> dict[str, t.Any] | None:
    """Return the ``error`` of an item's row: None where the item did not fail."""
    return None if error is None else error.row()


def duplicate(option: str, value: t.Any, first: str, part: str = "name") -> InvalidInput:
    """Return the error for an entry of a list that repeats an earlier one.

    :param option: the path of the option that both have the same of: ``domains[1].name``.
    :param first: the path of the earlier entry: ``domains[0]``.
    :param part: what both entries have in common.
    """
    return InvalidInput(option, value, f"{first} has the same {part}.")


def as_sentence(text: str) -> str:
    """Return a text with a full stop at its end, unless it ends a sentence already."""
    return text if text.endswith((".", "?", "!")) else text + "."


def did_you_mean(candidates: t.Sequence[str]) -> str:
    """Return the question that follows a message, with a space before it; nothing where there is no candidate."""
    if not candidates:
        return ""
    *others, last = candidates
    return f" Did you mean {', '.join(others)} or {last}?" if others else f" Did you mean {last}?"


def mask_secrets(text: str) -> str:
    """Return a text without the passwords of URIs and the keys of Ceph volumes in it."""
    password = URI_PASSWORD if re.match(_URI_START, text) else _PASSWORD_IN_TEXT
    return re.sub(_RBD_KEY, rf"\1{MASK}", re.sub(password, rf"\1:{MASK}@", text))


def _shown_value(value: t.Any) -> str:
    """Return a value on one line; nothing for a missing value and for a text of several lines."""
    if value is None or (isinstance(value, str) and "\n" in value.strip("\n")):
        return ""
    return _cut(repr(_plain(value)))


def _row_value(value: t.Any) -> t.Any:
    """Return a value as JSON; one that is too long for a message is a text that ends like the message."""
    plain = _plain(value)
    text = plain if isinstance(plain, str) else repr(plain)
    return plain if len(text) <= _SHOWN_CHARS else _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _plain(value: t.Any, levels: int = _SHOWN_LEVELS) -> t.Any:
    """Return a value that every reader of JSON takes: without infinite, huge and deep parts, and without secrets."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, int):
        return value if -_LARGEST < value < _LARGEST else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if levels and isinstance(value, t.Mapping):
        return {mask_secrets(str(key)): _plain(entry, levels - 1) for key, entry in value.items()}
    if levels and isinstance(value, (list, tuple)):
        return [_plain(entry, levels - 1) for entry in value]
    return f"a {type(value).__name__}"


class ItemsFailed(TapvirtError):
    """Some items of a task failed: the message joins theirs, and ``row()`` is that of the first one."""

    def __init__(self, errors: t.Iterable[TapvirtError | None], **fields: t.Any) -> None:
        self.errors = [error for error in errors if error is not None]
        super().__init__(" ".join(error.message for error in self.errors), **fields)

    def row(self) -> dict[str, t.Any]:
        """Return the ``error`` of the first item that failed."""
        return self.errors[0].row()


class NoEffect(TapvirtError):
    """A step reported success, yet reading the effect back showed something else."""


def nearest_names(name: str, candidates: t.Iterable[str], limit: int = 3) -> list[str]:
    """Return up to ``limit`` candidates that look most like ``name``, best first.

    Fit for 200,000 candidates: only those that share the length (within a third) and, in a long list, half of the
    name's letter pairs are compared letter by letter.
    """
    import difflib  # only a failing run needs it

    candidates = list(candidates)
    few = len(candidates) <= _FEW_NAMES
    wanted = name.lower()
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)}
    slack = max(3, len(wanted) // 3)
    scored: list[tuple[float, str]] = []
    for candidate in candidates:
        if abs(len(candidate) - len(wanted)) > slack:
            continue
        lowered = candidate.lower()
        shared = sum(1 for pair in pairs if pair in lowered)
        if few or shared * 2 >= len(pairs):
            scored.append((-shared, candidate))
    scored.sort()
    return difflib.get_close_matches(
        name, [candidate for _score, candidate in (scored if few else scored[:200])], n=limit, cutoff=0.5
    )


def missing_permission(error: PermissionError, needs: str) -> str:
    """Return one sentence that names the path, the user and what the task needs."""
    name, user = error.filename, os.geteuid()
    what = "a system call" if name is None else os.fsdecode(name) if isinstance(name, (str, bytes)) else f"file {name}"
    if user == 0:
        return f"Even root was refused {what} ({error.strerror}): a security module or an attribute of it forbids that."
    return f"The user with uid {user} was refused {what} ({error.strerror}); the task needs {needs}."
