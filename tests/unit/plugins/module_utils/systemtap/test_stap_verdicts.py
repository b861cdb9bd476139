# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of scripts against recorded verdicts of SystemTap's own parser, and against an installed stap."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.language.probe_point import parse_probe_point
from ansible_collections.tapvirt.host.tests.unit.support.systemtap.stap_verdicts import (
    MUTANTS,
    differs,
    fill_arguments,
    mutants,
    read_mutant_verdicts,
    read_verdicts,
    refusal,
)

# Trees of scripts: SystemTap's examples where they are installed, and a checkout of its sources.
SOURCES = os.environ.get("TAPVIRT_SYSTEMTAP_SOURCES", "")
TAPSET = pathlib.Path(os.environ.get("SYSTEMTAP_TAPSET", "/usr/share/systemtap/tapset"))

needs_stap = pytest.mark.skipif(shutil.which("stap") is None, reason="stap is not installed")


def test_verdicts_are_those_that_stap_gave():
    rows = read_verdicts()
    assert len(rows) > 500 and len({row.text for row in rows}) == len(rows)
    wrong = {}
    for row in rows:
        for guru, accepted in ((False, row.plain), (True, row.guru)):
            found = differs(row.text, guru, accepted)
            if found is not None:
                wrong[row.text] = (guru, accepted, found)
    assert wrong == {}


def test_verdicts_on_damaged_scripts_are_those_that_stap_gave():
    wrong, slowest = {}, 0.0
    texts, verdicts = mutants(), read_mutant_verdicts()
    assert len(texts) == len(verdicts) == MUTANTS
    for number, (text, accepted) in enumerate(zip(texts, verdicts)):
        started = time.process_time()
        found = differs(text, bool(number % 2), accepted)
        slowest = max(slowest, time.process_time() - started)
        if found is not None:
            wrong[text] = found
    assert wrong == {}
    assert slowest < 1


class Stap:
    """An installed stap that parses with the macros of its tapset only, which takes 20 times less time."""

    def __init__(self, directory):
        self.directory = directory
        tree, macros = directory / "tree", directory / "macros"
        (tree / "include" / "config").mkdir(parents=True)
        (tree / "include" / "config" / "kernel.release").write_text("6.12.0\n")
        for name in (".config", "Module.symvers"):
            (tree / name).touch()
        macros.mkdir()
        found = [path for path in TAPSET.rglob("*.stpm") if not {"bpf", "dyninst"} & set(path.parts)]
        for path in found:
            shutil.copy(path, macros)
        self.macros = "".join(path.read_text(errors="surrogateescape") + "\n" for path in found)

    def run(self, *arguments):
        return subprocess.run(
            ["stap", "-r", str(self.directory / "tree"), *arguments],
            env={
                **os.environ,
                "SYSTEMTAP_DIR": str(self.directory),
                "SYSTEMTAP_TAPSET": str(self.directory / "macros"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )

    def accepts(self, text, guru, *arguments):
        script = self.directory / "script.stp"
        script.write_bytes(text.encode("utf-8", "surrogateescape"))
        return self.run("-p1", *(["-g"] if guru else []), str(script), *arguments).returncode == 0


@pytest.fixture
def stap(tmp_path):
    return Stap(tmp_path)


@needs_stap
@pytest.mark.soak
def test_installed_stap_gives_the_recorded_verdicts(stap):
    rows = read_verdicts()
    assert [row for row in rows if stap.accepts(row.text, guru=True) != row.guru] == []
    assert [row for row in rows if row.plain != row.guru and stap.accepts(row.text, guru=False) != row.plain] == []


@needs_stap
@pytest.mark.soak
def test_installed_stap_agrees_on_damaged_scripts(stap):
    wrong = {}
    for number, text in list(enumerate(mutants()))[::10]:
        guru = bool(number % 2)
        found = differs(text, guru, stap.accepts(text, guru))
        if found is not None:
            wrong[text] = found
    assert wrong == {}


def scripts():
    """Return the installed examples, and all scripts of a checkout of SystemTap without its tapset."""
    found = [path for tree in pathlib.Path("/usr/share/doc").glob("systemtap*") for path in tree.rglob("*.stp")]
    if SOURCES:
        root = pathlib.Path(SOURCES)
        found += [path for path in root.rglob("*.stp") if path.relative_to(root).parts[0] != "tapset"]
    return sorted(found)


@needs_stap
@pytest.mark.soak
def test_installed_stap_agrees_on_its_examples_and_testsuite(stap):
    if not scripts():
        pytest.skip("no examples are installed, and TAPVIRT_SYSTEMTAP_SOURCES is not set")
    wrong = {}
    for path in scripts():
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        with_arguments = re.search(r"[$@][0-9#]", text) is not None
        for argument in ("9", "vfs") if with_arguments else ("",):
            filled = fill_arguments(text, argument)
            for guru in (False, True):
                accepted = stap.accepts(text, guru, *[argument] * 9 if argument else ())
                found = differs(filled, guru, accepted)
                if found is not None:
                    wrong[str(path), argument, guru] = found
    assert wrong == {}


@needs_stap
@pytest.mark.soak
def test_installed_stap_agrees_on_its_tapset(stap):
    wrong = {}
    for path in sorted(TAPSET.rglob("*.stp")):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        # A tapset may use the macros that are its own.
        message = refusal(stap.macros + text, guru=True)
        if (message == "") != stap.accepts(text, guru=True):
            wrong[str(path)] = message
    assert wrong == {}


@needs_stap
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["types", "aliases"])
def test_every_probe_of_the_installed_stap_is_valid(stap, monkeypatch, kind):
    arguments = ["stap", "-r", str(stap.directory / "tree"), f"--dump-probe-{kind}"]
    monkeypatch.setenv("SYSTEMTAP_DIR", str(stap.directory))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    forms = [re.split(r" \+?= ", line)[0].strip() for line in done.stdout.splitlines() if line.strip()]
    assert len(forms) > 400, done.stderr
    refused = [form for form in forms if all(not is_valid(form, number) for number in ("300", "200000"))]
    assert refused == []


def is_valid(form, number):
    with contextlib.suppress(InvalidInput):
        parse_probe_point(form.replace("(number)", f"({number})").replace("(string)", '("x")'))
        return True
    return False
