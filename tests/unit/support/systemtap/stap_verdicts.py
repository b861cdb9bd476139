# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts with the recorded verdicts of SystemTap's own parser, and damaged copies of them."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
import re
import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.grammar import parse
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.check import read_script

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "systemtap"
MUTANTS = 5_000
_WORD = re.compile(r'"(?:[^"\\\n]|\\.)*"|/\*.*?\*/|//[^\n]*|[A-Za-z_$@][\w$]*|[0-9]+|%[({?:)}]|\s+|.', re.DOTALL)
_ARGUMENT = re.compile(r'(?s)"(?:[^"\\\n]|\\.)*"|#[^\n]*|//[^\n]*|/\*.*?\*/|[$@](?:[1-9](?![0-9])|#)')
# What the grammar refuses although ``stap -p1`` accepts it: the second pass of stap always refuses it.
BEYOND = "has a format for"


class Verdict(t.NamedTuple):
    """A script, and whether ``stap -p1`` accepts it without guru mode and with it."""

    text: str
    plain: bool
    guru: bool


def read_verdicts() -> list[Verdict]:
    """Return the recorded verdicts on single scripts: lines of two signs ``+`` or ``-`` and a script in JSON."""
    lines = (FIXTURES / "stap_verdicts.txt").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(("+", "-"))]
    return [Verdict(json.loads(row[3:]), row[0] == "+", row[1] == "+") for row in rows]


def read_mutant_verdicts() -> list[bool]:
    """Return whether ``stap -p1`` accepts each of :func:`mutants`.

    :raises AssertionError: it judged others, because the scripts of which they are made are not the same.
    """
    lines = (FIXTURES / "stap_mutant_verdicts.txt").read_text(encoding="utf-8").splitlines()
    digest, *rows = [line for line in lines if not line.startswith("#")]
    assert hashlib.sha256("\0".join(mutants()).encode("utf-8", "surrogateescape")).hexdigest() == digest
    return [bit == "1" for bit in f"{int(''.join(rows), 16):0{MUTANTS}b}"]


def mutants(number: int = MUTANTS, seed: int = 1) -> list[str]:
    """Return accepted scripts with one to three parts or characters removed, moved, doubled or replaced."""
    rng = random.Random(seed)
    scripts = [verdict.text for verdict in read_verdicts() if verdict.guru]
    words = sorted({word for text in scripts for word in _WORD.findall(text) if len(word) < 20})
    return [_mutant(rng, rng.choice(scripts), words) for _number in range(number)]


def _mutant(rng: random.Random, text: str, words: t.Sequence[str]) -> str:
    for _change in range(rng.randint(1, 3)):
        parts = _WORD.findall(text)
        places = [index for index, part in enumerate(parts) if not part.isspace()]
        if not places:
            return text
        place, other = rng.choice(places), rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del parts[place]
        elif kind == 1:
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 2:
            parts.insert(other, parts[place] + rng.choice(("", " ")))
        elif kind == 3:
            parts[place] = rng.choice(words)
        else:
            part, cut = parts[place], rng.randrange(len(parts[place]))
            parts[place] = part[:cut] + part[cut] * (2 if kind == 4 else 0) + part[cut + 1 :]
        text = "".join(parts)
    return text


def refusal(text: str, guru: bool) -> str:
    """Return the error message of the grammar for a script, empty where it accepts the script."""
    try:
        parse("s", text, guru)
    except TapvirtError as error:
        return error.message
    return ""


def whole_refusal(text: str, guru: bool) -> str:
    """Return the error message of the whole check for a script, empty where it accepts the script."""
    try:
        read_script("s", text, guru)
    except TapvirtError as error:
        return error.message
    return ""


def differs(text: str, guru: bool, accepted: bool) -> str | None:
    """Return the grammar's message where its verdict is another one than stap's, None where both agree."""
    message = refusal(text, guru)
    if (message == "") == accepted or (accepted and BEYOND in message):
        return None
    return message or "accepted"


def fill_arguments(text: str, argument: str) -> str:
    """Put nine equal arguments where stap would: ``$1`` as it is, ``@1`` as a string; none where it is empty."""

    def value(found: re.Match[str]) -> str:
        word = found.group(0)
        if word[0] not in "$@" or not argument:
            return word
        filled = "9" if word[1] == "#" else argument
        return filled if word[0] == "$" else f'"{filled}"'

    return _ARGUMENT.sub(value, text)
