# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates of ./dev test: each calls the ecosystem's own tool and counts what it did."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import typing as t
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path

from .lab import lab_up
from .prepare import (
    BROWSER_PACKAGES,
    RPM_PACKAGES,
    SANITY_PYTHONS,
    TARGET_PYTHONS,
    Place,
    available,
    ensure_packages,
    find_python,
    git_in,
    make_venv,
    prepare,
)
from .steps import CACHE, LOGS, ROOT, DevError, Steps, lock, run

LINT_SESSIONS = {
    "codeqa": "ruff check",
    "formatters": "ruff format, checking only",
    "typing": "mypy --strict",
    "import-linter": "which modules import which",
    "yamllint": "YAML files, and the YAML inside documentation",
    "antsibull-nox-config": "the nox configuration itself",
    "license-check": "REUSE: every file names its licence",
    "extra-checks": "unwanted files, trailing white space",
    "changelog": "antsibull-changelog lint",
    "docs-check": "antsibull-docs lint-collection-docs with plugin documentation",
    "ansible-lint": "ansible-lint, profile production",
    "archive": "the built archive holds only what belongs in it",
    "build-import-check": "ansible-galaxy collection build and galaxy-importer",
}
TEST_KINDS = ["lint", "sanity", "unit", "integration", "lab", "soak"]
# Seconds that each gate may take on 2 cores with nothing else running and caches filled: 35 minutes in all.
BUDGETS = {"lint": 120, "sanity": 180, "unit": 540, "integration": 120, "lab": 1140}
PARALLEL = ["-n", "2", "--dist", "loadfile"]
_REASON_CHARACTERS = 300


@dataclasses.dataclass
class Tally:
    """How many tests passed and failed (which, and why), and why others were skipped (reason -> how often)."""

    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Sum two."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.reasons += other.reasons

    def line(self) -> str:
        """Return the last line of a test run."""
        return f"{self.passed} passed, {self.failed} failed, {sum(self.skipped.values())} skipped"


def junit_tally(path: Path) -> Tally:
    """Count pytest's own report."""
    tally = Tally()
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        skip = case.find("skipped")
        fault = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if fault is not None:
            tally.failed += 1
            why = str(fault.get("message")).partition("\n")[0][:_REASON_CHARACTERS]
            tally.reasons.append(f"{case.get('classname')}::{case.get('name')}: {why}")
        elif skip is not None:
            tally.skipped[str(skip.get("message"))] += 1
        else:
            tally.passed += 1
    return tally


def sanity_skips(text: str) -> Counter[str]:
    """Return what ansible-test says it could not run."""
    return Counter(
        set(re.findall(r"^WARNING: (Skipping (?:sanity )?test .*|.* skipped due to .*)$", text, re.MULTILINE))
    )


def importer_complaints(text: str) -> list[str]:
    """Return galaxy-importer's errors and warnings: it exits 0 with them."""
    return re.findall(r"^\s*((?:ERROR|WARNING):.*)$", text, re.MULTILINE)


class Gates:
    """Runs gates one after another, goes on after a failure, and sums up."""

    def __init__(self, steps: Steps, packages: list[str], soak: bool) -> None:
        self.steps = steps
        self.tally = Tally()
        self.failures: list[str] = []
        self.place = prepare(steps, "test", packages)
        self.soak = {"TAPVIRT_SOAK": "1"} if soak else {}

    def gate(self, title: str, body: t.Callable[[], Tally]) -> None:
        """Run one gate; one that raises counts as a failed test."""
        tally = Tally(failed=1)
        try:
            with self.steps.step(title):
                tally = body()
                if tally.failed:
                    raise DevError(f"{tally.line()}")
        except DevError as error:
            self.failures += [title, *(f"  {reason}" for reason in tally.reasons)]
            print(error, flush=True)
        self.tally.add(tally)
        for reason, times in tally.skipped.items():
            print(f"      skipped{f' {times} times' if times > 1 else ''}: {reason}")

    def _pytest(self, name: str, argv: t.Sequence[str | Path], env: t.Mapping[str, str]) -> Tally:
        report = LOGS / f"{name}.xml"
        report.unlink(missing_ok=True)
        try:
            run(self.steps, name, [*argv, f"--junitxml={report}"], env, self.place.tree)
        except DevError as error:
            if not report.exists() or not junit_tally(report).failed:
                raise
            print(f"\n{error}")
        return junit_tally(report)

    def lint(self) -> None:
        """Run the sessions of noxfile.py in environments of their own.

        They run in the copy of the tree, with the tree's git: several of these tools take a ``$`` in a path for a
        variable, and the tree may lie in any folder.
        """
        files = ["noxfile.py", "antsibull-nox.toml", "tests/constraints.txt"]
        parts = [self.place.python, *((ROOT / name).read_text("utf-8") for name in files)]
        envdir = CACHE / "nox" / hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
        env = self.place.env | {"CI": "true", "NO_COLOR": "1"}
        env.pop("PYTHONPATH")
        for session, what in LINT_SESSIONS.items():

            def body(session: str = session) -> Tally:
                with lock(f"nox-{envdir.name}-{session}"), git_in(self.place.tree):
                    text = run(
                        self.steps, session, ["nox", "-R", "--envdir", envdir, "-s", session], env, self.place.tree
                    )
                complaints = importer_complaints(text) if session == "build-import-check" else []
                if complaints:
                    raise DevError("\n".join(complaints))
                return Tally(passed=1)

            self.gate(f"lint {session}: {what}", body)

    def _ansible_test(self, name: str, venv: Path, *arguments: str) -> str:
        home = CACHE / "home"
        stand_in_for_get_pip(self.steps, self.place, venv, home)
        (self.place.tree / "tests" / "output" / ".tmp").mkdir(parents=True, exist_ok=True)
        env = self.place.env | {"HOME": str(home), "PATH": f"{venv / 'bin'}:{self.place.env['PATH']}"}
        for key in ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "ANSIBLE_COLLECTIONS_PATH"):
            env.pop(key)  # ansible-test sets its own
        argv = ["ansible-test", *arguments, "--color", "no"]
        return run(self.steps, name, argv, env, self.place.tree, telling=r"^(ERROR|FATAL|fatal|failed):")

    def sanity(self) -> None:
        """Run all of ansible-test sanity, without an ignore file.

        A long run does so with every ansible-core that the collection is for.
        """

        def body(version: str = "") -> Tally:
            venv = self.place.venv
            if version:
                python = find_python([version])
                if not python:
                    return Tally(skipped=Counter([f"no Python {version} on this machine for an older ansible-core"]))
                requirements = ROOT / "tests" / "requirements-sanity.txt"
                venv = make_venv(self.steps, f"sanity-{version}", python[1], requirements)
            text = self._ansible_test(f"sanity{version}", venv, "sanity", "--requirements")
            return Tally(passed=1, skipped=sanity_skips(text))

        self.gate("sanity: ansible-test sanity on every Python there is", body)
        if self.soak:
            for version in SANITY_PYTHONS:
                title = f"sanity: with the ansible-core of tests/requirements-sanity.txt for Python {version}"
                self.gate(title, functools.partial(body, version))

    def unit(self) -> None:
        """Run the unit tests, and those of what runs on managed hosts under the oldest Python that a host may have.

        A long run takes all of those Pythons.
        """

        def target(version: str) -> Tally:
            python = find_python([version])
            if not python:
                return Tally(skipped=Counter([f"no Python {version} on this machine to run module_utils under"]))
            requirements = ROOT / "tests" / "requirements-targets.txt"
            venv = make_venv(self.steps, f"target-{version}", python[1], requirements)
            env = self.place.env | {"PATH": f"{venv / 'bin'}:{self.place.env['PATH']}"}
            command: list[str | Path] = [venv / "bin" / "pytest", *PARALLEL, "tests/unit/plugins/module_utils"]
            return self._pytest(f"unit-{version}", command, env | self.soak)

        if optional := available([*BROWSER_PACKAGES, *RPM_PACKAGES]):
            ensure_packages(self.steps, optional)
        main = ["pytest", *PARALLEL, "tests/unit"]
        env = self.place.env | self.soak
        self.gate(f"unit: pytest under Python {self.place.python}", lambda: self._pytest("unit", main, env))
        for version in TARGET_PYTHONS if self.soak else TARGET_PYTHONS[:1]:
            self.gate(f"unit: what runs on managed hosts, under Python {version}", functools.partial(target, version))

    def integration(self) -> None:
        """Run the targets of tests/integration on this machine."""
        targets = [path.parent.name for path in (ROOT / "tests" / "integration" / "targets").glob("*/tasks")]

        def body() -> Tally:
            if not targets:
                raise DevError("tests/integration/targets holds no target")
            options = ["--allow-root", "--allow-destructive", "--python", self.place.python]
            self._ansible_test("integration", self.place.venv, "integration", *options)
            return Tally(passed=len(targets))

        self.gate(f"integration: {len(targets)} targets by ansible-test on this machine", body)

    def lab(self) -> None:
        """Bring the whole lab up and run the tests that need real kernels and a real hypervisor."""
        inventory: list[Path] = []

        def up() -> Tally:
            inventory.append(lab_up(self.steps, None))
            if self.soak:  # they take minutes to start
                lab_up(self.steps, ["xen1", "selinux1"])
            return Tally(passed=1)

        def body() -> Tally:
            if not inventory:
                raise DevError("the lab did not come up")
            env = self.place.env | self.soak | {"TAPVIRT_LAB_INVENTORY": str(inventory[0])}
            return self._pytest("lab", ["pytest", "-v", "--timeout=1800", "tests/lab"], env)

        self.gate("lab: bring every host up", up)
        self.gate("lab: tests on real kernels and a real hypervisor", body)


def stand_in_for_get_pip(steps: Steps, place: Place, venv: Path, home: Path) -> None:
    """Give the ansible-test of ``venv``, which asks a web site for get-pip, the same pip from the package index."""
    source = next(venv.glob("lib/python3*/site-packages/ansible_test/_internal/python_requirements.py"))
    pinned = re.search(r"\bpip=['\"]([\d.]+)['\"]", source.read_text("utf-8"))
    if not pinned:
        return
    cache = home / ".ansible" / "test" / "cache"
    script = cache / f"get_pip_{pinned[1].replace('.', '_')}.py"
    with lock("get-pip"):
        if script.exists():
            return
        cache.mkdir(parents=True, exist_ok=True)
        pip = [str(place.venv / "bin" / "python"), "-m", "pip", "download", "--no-deps", "-d", str(cache)]
        run(steps, "get-pip", [*pip, f"pip=={pinned[1]}"], place.env)
        wheel = next(cache.glob(f"pip-{pinned[1]}-*.whl"))
        script.write_text(
            f"import sys\nsys.path.insert(0, {str(wheel)!r})\nfrom pip._internal.cli.main import main\n"
            "words = [word for word in sys.argv[1:] if word not in ('--no-setuptools', '--no-wheel')]\n"
            f"sys.exit(main(['install', '--find-links', {str(cache)!r}, *words]))\n",
            encoding="utf-8",
        )
