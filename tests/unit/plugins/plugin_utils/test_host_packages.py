# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of package managers, and what their results mean."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet.host_packages import (
    builder_packages,
    install_command,
    install_problem,
    package_queries,
    packages_not_found,
    packages_to_install,
)

REPOSITORIES = """<?xml version='1.0'?>
<stream>
<repo-list>
<repo alias="repo-oss" name="Main" type="rpm-md" enabled="1" autorefresh="1">
<url>dir:/debug/oss</url>
</repo>
<repo alias="repo-debug" name="Debug &amp; more" type="rpm-md" enabled="0" autorefresh="1">
<repo alias="SLE-Module-Basesystem15-SP6-Debuginfo-Pool" name="x" enabled="0">
<repo alias="debug-on" name="x" enabled="1">
<repo alias="--debug" name="x" enabled="0">
</stream>
"""


def command(family: str, *names: str, debug: bool = False, **changes: t.Any) -> list[str]:
    usual = {"repositories": ["*debug*"], "listed": REPOSITORIES, "seconds": 1800}
    return install_command(family=family, names=names, debug=debug, **{**usual, **changes})


def problem(family: str, rc: int | None, stdout: str = "", stderr: str = "") -> str:
    result = {"rc": rc, "stdout": stdout, "stderr": stderr, "msg": "non-zero return code"}
    return install_problem(family=family, names=["gcc", "make"], result=result, seconds=1800, lock_seconds=60)


def test_dnf_keeps_every_kernel_and_enables_repositories_of_debug_information_when_asked() -> None:
    start = ["timeout", "1800", "dnf", "-y", "--setopt=installonly_limit=0"]
    assert command("RedHat", "gcc", "kernel-devel-uname-r = 5.14") == [
        *start,
        "install",
        "gcc",
        "kernel-devel-uname-r = 5.14",
    ]
    wanted = command("RedHat", "kernel-debuginfo-5.14", debug=True, repositories=["a-debug", "b*"])
    assert wanted[5:] == ["--setopt=a-debug.enabled=1", "--setopt=b*.enabled=1", "install", "kernel-debuginfo-5.14"]


def test_zypper_asks_nothing_and_takes_disabled_repositories_by_keyword_and_by_name() -> None:
    assert command("SUSE", "gcc", seconds=9) == [
        "timeout",
        "9",
        "zypper",
        "--non-interactive",
        "install",
        "--no-recommends",
        "gcc",
    ]
    names = ["debug", "repo-debug", "SLE-Module-Basesystem15-SP6-Debuginfo-Pool"]
    content = [word for name in names for word in ("--plus-content", name)]
    end = ["install", "--no-recommends", "--oldpackage", "x = 1"]
    assert command("SUSE", "x = 1", debug=True)[4:] == [*content, *end]
    assert command("SUSE", "x = 1", debug=True, listed="no XML")[4:] == ["--plus-content", "debug", *end]


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"names": ["gcc", "--allowerasing"]}, "host_packages_names[1]"),
        ({"names": [""]}, "host_packages_names[0]"),
        ({"names": ["gcc", "!vim"]}, "host_packages_names[1]"),
        ({"names": ["gcc\nmake"]}, "host_packages_names[0]"),
        ({"repositories": ["-x"]}, "host_packages_debug_repositories[0]"),
        ({"seconds": 0}, "host_packages_timeout_seconds"),
    ],
)
def test_what_could_be_an_option_is_refused(changes: dict[str, t.Any], option: str) -> None:
    usual: dict[str, t.Any] = {"names": ["gcc"], "repositories": [], "listed": "", "seconds": 1}
    for family in ("RedHat", "SUSE"):
        with pytest.raises(InvalidInput) as caught:
            install_command(family=family, debug=True, **{**usual, **changes})
        assert caught.value.option == option


@pytest.mark.parametrize(
    ("family", "rc", "output", "expected"),
    [
        ("RedHat", 0, "Complete!", ""),
        ("SUSE", 0, "", ""),
        ("SUSE", 102, "", ""),
        ("SUSE", 106, "", ""),
        ("RedHat", 102, "odd", "dnf ended with status 102: odd."),
        ("RedHat", 127, "timeout: failed to run command 'dnf'", "dnf could not be run on this host: timeout: failed"),
        ("RedHat", None, "", "dnf could not be run on this host: no output."),
        ("SUSE", 124, "", "zypper did not end within 1800 seconds and was stopped (host_packages_timeout_seconds)."),
        (
            "SUSE",
            7,
            "System management is locked by the application with pid 4711 (zypper).\n",
            "Another program holds the lock of zypper, also after 60 seconds (host_packages_lock_seconds): System"
            " management is locked by the application with pid 4711 (zypper). Run the role again",
        ),
        ("SUSE", 104, "", "zypper does not find these packages in the repositories of this host: gcc, make."),
        (
            "RedHat",
            1,
            "Last metadata\nNo match for argument: gcc\nError: Unable to find a match: gcc\n",
            "dnf does not find these packages in the repositories of this host: gcc.",
        ),
        ("SUSE", 4, "a\nb\n\nc\nd\ne\nf\x1b[0m.\n", "zypper ended with status 4: b | c | d | e | f [0m."),
        ("SUSE", 4, "x" * 9999, f"zypper ended with status 4: {'x' * 500}."),
    ],
)
def test_each_status_has_a_sentence(family: str, rc: int | None, output: str, expected: str) -> None:
    found = problem(family, rc, output)
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_what_is_no_result_of_a_command_is_refused() -> None:
    with pytest.raises(TapvirtError, match="something else than the result of a command: rc is 'x'"):
        install_problem(family="SUSE", names=[], result={"rc": "x"}, seconds=1, lock_seconds=1)


def test_rpm_is_asked_for_names_only() -> None:
    names = ["gcc >= 11", "kernel-devel-uname-r = 5.14+rt", "@development", "/usr/bin/ld", "kernel-devel-5.14", "gcc"]
    assert package_queries(names=names) == ["gcc", "kernel-devel-uname-r", "/usr/bin/ld", "kernel-devel-5.14"]
    output = "gcc-13.3.0-1.x86_64\npackage a-1 is not installed\nno package provides b(x)\nno package c\n"
    assert packages_not_found(output=output) == ["a-1", "b(x)"]


def test_packages_that_are_installed_are_left_as_they_are() -> None:
    names = ["gcc", "qemu-kvm", "kernel-devel-uname-r = 5.14", "@development"]
    wanted = ["gcc", "kernel-devel-uname-r = 5.14", "@development"]
    assert packages_to_install(names=names, absent=["gcc"]) == wanted


def test_the_users_names_replace_those_of_the_distribution() -> None:
    missing: list[dict[str, t.Any]] = [
        {"what": "toolchain", "kernel": None, "packages": ["systemtap", "gcc"]},
        {"what": "headers", "kernel": "5.14", "packages": ["kernel-devel-uname-r = 5.14"]},
        {"what": "headers", "kernel": "6.1", "packages": ["kernel-devel-uname-r = 6.1"]},
        {"what": "compiler", "kernel": "6.1", "packages": ["gcc"]},
        {"what": "debuginfo", "kernel": "5.14", "packages": ["kernel-debuginfo-5.14"]},
    ]
    assert builder_packages(missing=missing, chosen={"toolchain": [], "headers": []}) == {
        "base": ["systemtap", "gcc", "kernel-devel-uname-r = 5.14", "kernel-devel-uname-r = 6.1"],
        "debuginfo": ["kernel-debuginfo-5.14"],
    }
    chosen = {"toolchain": ["stap"], "headers": ["h-RELEASE", "common"], "debuginfo": ["d-RELEASE"]}
    assert builder_packages(missing=missing, chosen=chosen) == {
        "base": ["stap", "h-5.14", "common", "h-6.1", "gcc"],
        "debuginfo": ["d-5.14"],
    }
