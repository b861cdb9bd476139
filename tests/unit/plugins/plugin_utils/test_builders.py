# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of several builders builds for a host, and what is said where none can."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.builders import asked_builders, trace_builder_for

OLD, NEW = "6.1.0-50-amd64", "7.2.12-amd64"


DEBIAN = {"name": "debian", "family": "Debian"}
ROCKY = {"name": "rocky", "family": "RedHat"}


def host_facts(release: str, staprun: str | None = "5.1", **more: t.Any) -> dict[str, t.Any]:
    return {
        "distribution": DEBIAN,
        "kernel": {"release": release},
        "traceability": {"reasons": [], "conditions": []},
        "staprun": staprun,
        "privilege": {"load_modules": True, "groups": []},
        "memory": {"free_bytes": 1 << 30, "buffers_bytes": 0, "cpus_online": 2},
        "loaded": [],
        **more,
    }


def builder_facts(
    *releases: str, stap: str = "5.6", tested: str = "7.3", debuginfo: bool = True, **more: t.Any
) -> dict[str, t.Any]:
    kernels = {release: {"version": "#1", "compiler": "gcc-14", "debuginfo": debuginfo} for release in releases}
    facts = {"distribution": DEBIAN, "stap": stap, "tested": ["3.10", tested], "compilers": ["gcc-14"]}
    return {**facts, "kernels": kernels, **more}


def test_a_kernel_goes_to_who_has_its_headers() -> None:
    builders = {"old": builder_facts(OLD), "new": builder_facts(NEW)}
    assert trace_builder_for(host_facts(OLD), builders)["builder"] == "old"
    chosen = trace_builder_for(host_facts(NEW), builders)
    assert (chosen["builder"], chosen["verdict"], chosen["remedy"], chosen["findings"]) == ("new", "ready", None, [])
    assert chosen["reason"] == f"kernel {NEW} can be traced, built on new"


def test_the_first_of_several_and_one_with_debug_information_before_one_without() -> None:
    assert trace_builder_for(host_facts(NEW), {"b": builder_facts(NEW), "a": builder_facts(NEW)})["builder"] == "b"
    bare = builder_facts(OLD, NEW, debuginfo=False)
    both = {"bare": bare, "whole": builder_facts(NEW)}
    assert trace_builder_for(host_facts(NEW), both)["builder"] == "whole"
    alone = trace_builder_for(host_facts(OLD), both)
    assert (alone["builder"], [row["check"] for row in alone["findings"]]) == ("bare", ["debuginfo"])


def test_versions_decide_as_well() -> None:
    builders = {"older": builder_facts(NEW, stap="5.1", tested="6.9"), "newer": builder_facts(NEW)}
    assert trace_builder_for(host_facts(NEW), builders)["builder"] == "newer"
    four = {"five": builder_facts(OLD), "four": builder_facts("5.10.0-1-amd64", OLD, stap="4.8", tested="6.1")}
    assert trace_builder_for(host_facts("5.10.0-1-amd64", staprun="4.8"), four)["builder"] == "four"


def test_where_none_can_each_gives_the_reason_and_what_helps() -> None:
    none = trace_builder_for(host_facts("9.9"), {"old": builder_facts(OLD), "gone": None, "new": builder_facts(NEW)})
    assert (none["builder"], none["verdict"]) == ("", "refused")
    for message in (f"old: the builder has no headers for 9.9; it has them for: {OLD}", f"it has them for: {NEW}"):
        assert message in none["reason"]
    assert "the builder gone did not answer" in none["reason"]
    assert none["remedy"] == (
        "install the package linux-headers-9.9 on the builder (old, new); "
        "use a builder with a newer SystemTap (old, new); prepare it with the role trace_builder (gone)"
    )
    single = trace_builder_for(host_facts("9.9"), {"only": builder_facts(OLD)})
    assert single["reason"].startswith("the builder has no headers for 9.9")
    assert trace_builder_for(host_facts(OLD), {})["reason"] == "there is no builder"


def test_what_forbids_the_host_itself_is_reported_once_and_its_builder_chosen_all_the_same() -> None:
    refused = trace_builder_for(host_facts(OLD, staprun=None), {"a": builder_facts(OLD), "b": builder_facts(OLD)})
    assert (refused["verdict"], refused["builder"], refused["reason"]) == (
        "refused",
        "a",
        "staprun is not installed",
    )
    assert refused["remedy"] == "install the package systemtap-runtime"


def test_a_remedy_names_the_packages_of_who_needs_them() -> None:
    release = "5.14.0-427.el9.x86_64"
    builders = {"deb": builder_facts(OLD), "rock": builder_facts(OLD, distribution=ROCKY)}
    refused = trace_builder_for(
        host_facts(release, staprun=None, distribution={"name": "sles", "family": "SUSE"}), builders
    )
    assert refused["remedy"] == (
        "install the package systemtap-runtime; "
        f"install the package linux-headers-{release} on the builder (deb); "
        f"install the package kernel-devel-{release} on the builder (rock)"
    )


def test_a_host_of_another_architecture_has_no_builder() -> None:
    host = host_facts(OLD)
    host["kernel"]["arch"] = "aarch64"
    builders = {name: builder_facts(OLD, arch="x86_64") for name in ("a", "b")}
    refused = trace_builder_for(host, builders)
    assert (refused["builder"], refused["verdict"]) == ("", "refused")
    assert refused["reason"] == "there is no builder for aarch64: a is x86_64, b is x86_64"
    assert refused["remedy"] == "put a builder of the architecture aarch64 into the group builders"
    # The output that "docs/docsite/rst/guide_builders.rst" shows.
    shown = trace_builder_for(host, {"builder1": builder_facts(OLD, arch="x86_64")})["reason"]
    assert shown == "there is no builder for aarch64: builder1 is x86_64"
    fits = {**builders, "c": builder_facts(OLD, arch="aarch64")}
    assert trace_builder_for(host, fits)["builder"] == "c"
    lacking = trace_builder_for(host, {**builders, "c": builder_facts(NEW, arch="aarch64")})
    assert "a: the builder is x86_64, and does not build for aarch64" in lacking["reason"]
    assert "c: the builder has no headers" in lacking["reason"]


def test_other_input_is_refused_in_words() -> None:
    with pytest.raises(TapvirtError, match="as its host"):
        trace_builder_for({"verdict": "ready"}, {})
    with pytest.raises(TapvirtError, match="not a dictionary of builders' names"):
        trace_builder_for(host_facts(OLD), ["builder1"])
    assert trace_builder_for(host_facts(OLD), {"a": builder_facts(OLD)})["builder"] == "a"


def test_the_builders_that_were_asked_are_known_by_name() -> None:
    results: list[dict[str, t.Any]] = [
        {"item": "a", "builder": builder_facts(OLD)},
        {"item": "gone", "unreachable": True},
    ]
    assert asked_builders(results) == {"a": builder_facts(OLD), "gone": None}
    assert asked_builders(results, "a") == {"a": builder_facts(OLD)}
    assert asked_builders(results, "other") == {"other": None}
