# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of package managers for the role host_packages, and what their results mean. Private to the collection."""

from __future__ import annotations

import fnmatch
import html
import re
import typing as t

from ...module_utils._core.errors import InvalidInput, TapvirtError
from .._transport.edge import TEXT, WHOLE, Odd, parse

# zypper(8), EXIT CODES: 100 to 103 inform, 106 skipped a repository, 107 had a package whose script failed.
_ZYPPER_SUCCESS = (0, 100, 101, 102, 103, 106, 107)
_ZYPPER_LOCKED = 7
_ZYPPER_NOT_FOUND = 104
# timeout(1) of coreutils.
_TIMED_OUT = 124
_PROGRAM_MISSING = 127
_DNF_NOT_FOUND = re.compile(r"^(?:No match for argument|No match for group package): (.*)$", re.MULTILINE)
_ABSENT = re.compile(
    r"^(?:package (?P<package>\S+) is not installed|no package provides (?P<provide>\S+))$", re.MULTILINE
)
_QUERY = re.compile(r"[A-Za-z0-9/][\w.+:/()~^-]*", re.ASCII)
_ZYPPER_REPOSITORY = re.compile(r"<repo ([^<>]*)>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_SHOWN_LINES = 5
_SHOWN_CHARS = 500
_RELEASE_MARK = "RELEASE"


def install_command(
    *, family: str, names: t.Sequence[str], debug: bool, repositories: t.Sequence[str], listed: str, seconds: int
) -> list[str]:
    """Return the command that installs packages on a host of the family ``RedHat`` or ``SUSE``.

    It ends itself after some seconds with SIGTERM: dnf and zypper finish a package that they have begun to install.

    :param debug: whether repositories of debug information are enabled for this command.
    :param repositories: patterns of their names.
    :param listed: what ``zypper --xmlout repos`` printed; it takes names of repositories, and no patterns.
    :raises InvalidInput: a name or a pattern could be an option, or the time is not positive.
    """
    for option, values in (("host_packages_names", names), ("host_packages_debug_repositories", repositories)):
        for index, value in enumerate(values):
            # "-NAME" and "!NAME" remove a package.
            if not re.match(r"[A-Za-z0-9@/*]", value) or not value.isprintable():
                problem = "The first character is a letter, a digit, @, * or /, and all others can be printed."
                raise InvalidInput(f"{option}[{index}]", value, problem)
    if seconds <= 0:
        raise InvalidInput("host_packages_timeout_seconds", seconds, "The time is a positive number of seconds")
    before = ["timeout", str(seconds)]
    if family == "SUSE":
        # Repositories that say in their metadata what they are for need no pattern.
        tags = ["debug", *_disabled(listed, repositories)] if debug else []
        content = [word for tag in tags for word in ("--plus-content", tag)]
        # Debug information of an older kernel may replace that of a newer one; all else has no version to go back to.
        options = ["--no-recommends", *(["--oldpackage"] if debug else [])]
        return [*before, "zypper", "--non-interactive", *content, "install", *options, *names]
    # A pattern that matches no repository is an error of --enablerepo, and none of --setopt.
    enabled = [f"--setopt={pattern}.enabled=1" for pattern in repositories] if debug else []
    # By default, dnf removes the headers of the oldest kernel when it installs those of a fourth.
    return [*before, "dnf", "-y", "--setopt=installonly_limit=0", *enabled, "install", *names]


def _disabled(listed: str, patterns: t.Sequence[str]) -> list[str]:
    """Return the names of zypper's disabled repositories that a pattern matches, in upper or lower case."""
    rows = (html.unescape(row) for row in _ZYPPER_REPOSITORY.findall(listed))
    found = (dict(_ATTRIBUTE.findall(row)) for row in rows)
    names = [row["alias"] for row in found if row.get("enabled") == "0" and row.get("alias", "-")[:1] != "-"]
    return [name for name in names if any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)]


def install_problem(*, family: str, names: t.Sequence[str], result: t.Any, seconds: int, lock_seconds: int) -> str:
    """Return why a command of :func:`install_command` failed, as sentences; empty if it did not.

    :param result: what ``ansible.builtin.command`` returned.
    """
    try:
        known = parse(result, {"rc": WHOLE, "stdout": TEXT, "stderr": TEXT})
    except Odd as error:
        raise TapvirtError(f"The host returned something else than the result of a command: {error}.") from None
    manager = "zypper" if family == "SUSE" else "dnf"
    status, output = known.get("rc"), "\n".join(filter(None, (known.get("stdout"), known.get("stderr"))))
    if status == 0 or (family == "SUSE" and status in _ZYPPER_SUCCESS):
        return ""
    if status in (None, _PROGRAM_MISSING):
        return f"{manager} could not be run on this host: {_last_lines(output)}."
    if status == _TIMED_OUT:
        return (
            f"{manager} did not end within {seconds} seconds and was stopped (host_packages_timeout_seconds)."
            f" It printed last: {_last_lines(output)}."
        )
    if family == "SUSE" and status == _ZYPPER_LOCKED:
        return (
            f"Another program holds the lock of zypper, also after {lock_seconds} seconds (host_packages_lock_seconds):"
            f" {_last_lines(output)}. Run the role again when that program has ended."
        )
    absent = _DNF_NOT_FOUND.findall(output)
    if absent or (family == "SUSE" and status == _ZYPPER_NOT_FOUND):
        what = ", ".join(map(_printable, absent)) or ", ".join(names)
        return f"{manager} does not find these packages in the repositories of this host: {what}."
    return f"{manager} ended with status {status}: {_last_lines(output)}."


def package_queries(*, names: t.Sequence[str]) -> list[str]:
    """Return what rpm is asked for: names without conditions on the version; groups cannot be queried."""
    found = (_QUERY.match(name) for name in names)
    return list(dict.fromkeys(match[0] for match in found if match))


def packages_to_install(*, names: t.Sequence[str], absent: t.Sequence[str]) -> list[str]:
    """Return the names that the package manager gets: dnf and zypper would update packages that are installed.

    Groups and names with a condition on the version cannot be queried, so they are always among them.

    :param absent: what rpm did not find of :func:`package_queries`.
    """
    return [name for name in names if name in absent or not _QUERY.fullmatch(name)]


def packages_not_found(*, output: str) -> list[str]:
    """Return the names that ``rpm --query`` did not find, from its output."""
    return [match["package"] or match["provide"] for match in _ABSENT.finditer(output)]


def builder_packages(*, missing: t.Sequence[t.Mapping[str, t.Any]], chosen: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the packages that a builder needs: ``base``, and ``debuginfo``, which may be in other repositories.

    :param missing: rows of ``missing`` of ``stap_host_info``.
    :param chosen: the user's names of packages for ``toolchain``, ``headers`` and ``debuginfo``; empty for those that
        the host's distribution has. RELEASE in a name stands for the kernel's release.
    """
    wanted: dict[str, list[str]] = {"base": [], "debuginfo": []}
    for row in missing:
        names = [name.replace(_RELEASE_MARK, row["kernel"] or _RELEASE_MARK) for name in chosen.get(row["what"]) or ()]
        wanted["debuginfo" if row["what"] == "debuginfo" else "base"] += names or row["packages"]
    return {kind: list(dict.fromkeys(names)) for kind, names in wanted.items()}


def _last_lines(output: str) -> str:
    lines = [line.strip() for line in map(_printable, output.splitlines()) if line.strip()]
    return " | ".join(lines[-_SHOWN_LINES:])[-_SHOWN_CHARS:].rstrip(".") or "no output"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
