# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches kernel packages of any Debian suite without touching the machine's own apt state."""

from __future__ import annotations

import contextlib
import re
from functools import cache
from pathlib import Path

from .commands import run
from .errors import LabError
from .needs import DEBIAN_KEYRING

# The packages of a kernel itself, which its metapackages depend on; compilers and tools come from the roots.
_OF_THE_KERNEL = re.compile(r"linux-(image|binary|modules|headers|kbuild)-\S+|linux-base-\d\S+")


@cache
def debian_mirror() -> str | None:
    """Return the mirror that the machine's apt uses for Debian, or ``None``: mmdebstrap chooses one (on Ubuntu)."""
    rows = run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
    for row in rows.splitlines():
        origin, label, address = row.split("|", 2)
        if origin == "Debian" and label == "Debian":
            return address
    return None


def apt_sources(suite: str, scratch: Path) -> str:
    """The one-line apt source of a suite."""
    mirror = debian_mirror()
    if mirror is None:
        # mmdebstrap knows Debian's default address and writes it before it downloads anything; then we stop it.
        note = scratch / "default-sources"
        hook = f'--setup-hook=cat "$1/etc/apt/sources.list" > {note}; exit 1'
        with contextlib.suppress(LabError):
            run(["mmdebstrap", "--mode=root", "--variant=custom", hook, suite, scratch / "never-made"])
        found = re.search(rf"^deb (?:\[[^]]*\] )?(\S+) {re.escape(suite)} ", note.read_text(), re.MULTILINE)
        if found is None:
            raise LabError(f"neither apt nor mmdebstrap of this machine knows a Debian mirror for {suite}")
        mirror = found.group(1)
    return f"deb [signed-by={DEBIAN_KEYRING}] {mirror} {suite} main\n"


def dependencies(stanza: str) -> list[str]:
    """The packages of the kernel itself that a package record depends on (first alternatives)."""
    found = re.search(r"^Depends: (.*)$", stanza, re.MULTILINE)
    names = (clause.split("|")[0].split()[0] for clause in found.group(1).split(",")) if found else ()
    return [name for name in names if _OF_THE_KERNEL.fullmatch(name)]


class Apt:
    """A private apt for one suite in a scratch directory."""

    def __init__(self, suite: str, scratch: Path) -> None:
        self.suite = suite
        for folder in ("lists/partial", "archives/partial"):
            (scratch / folder).mkdir(parents=True)
        sources = scratch / "sources.list"
        sources.write_text(apt_sources(suite, scratch), encoding="utf-8")
        self._options = [
            f"-oDir::Etc::sourcelist={sources}",
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={scratch / 'lists'}",
            "-oDir::State::status=/dev/null",
            f"-oDir::Cache={scratch}",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
            "-oAPT::Architecture=amd64",
            "-oAPT::Architectures=amd64",
            # Testing's Release file is at times older than its own Valid-Until allows.
            "-oAcquire::Check-Valid-Until=false",
        ]
        run(["apt-get", *self._options, "--quiet", "update"])

    def closure(self, starts: list[str]) -> list[str]:
        """The kernel packages that these lead to, themselves included unless they are only names for others."""
        seen: list[str] = []
        todo = list(starts)
        while todo:
            name = todo.pop(0)
            if name not in seen:
                seen.append(name)
                record = run(["apt-cache", *self._options, "show", "--no-all-versions", name])
                todo += dependencies(record)
        return [name for name in seen if name not in starts]

    def download(self, names: list[str], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        run(["apt-get", *self._options, "--quiet", "download", *names], cwd=folder)
