# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may read back after a write, what taints, and what an error of the kernel means."""

from __future__ import annotations

import errno
import os

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, NoEffect, TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.model import Item
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.values import (
    Kind,
    parse_value,
    read_value,
)
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.write import (
    check_read_back,
    explain_errno,
)
from ansible_collections.tapvirt.host.tests.unit.support.files import write_files
from ansible_collections.tapvirt.host.tests.unit.support.kernel.parameters import set_parameters


def item(word="uint", module="some", name="parameter", mode=0o644, text=None):
    return Item(module, name, Kind(word, "modinfo"), mode, text, True, True, 64, None)


@pytest.fixture
def root(tmp_path):
    write_files(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": "6.12",
            "proc/sys/kernel/tainted": "0\n",
            "sys/module/pcie_aspm/parameters/policy": "[default] performance powersave powersupersave\n",
            "sys/module/panfrost/parameters/unstable_ioctls": "N\n",
            "sys/module/some/parameters/plain": "one two\n",
            "sys/module/some/parameters/number": "5\n",
        },
    )
    return Root(str(tmp_path))


def set_parameter(root, label, value, **options):
    return set_parameters(root, {label: value}, **options)


@pytest.mark.parametrize(
    ("asked", "before", "wanted", "now", "accepted"),
    [
        ("auto", "5", "1000", "1000", True),
        ("auto", "5", "1000", "1024", True),
        ("auto", "1024", "1000", "1024", False),
        ("exact", "5", "1000", "1024", False),
        ("selector", "5", "1000", "1024", False),
        ("rounded", "1024", "1000", "1024", True),
        ("clamped", "5", "1000", "250", True),
        ("clamped", "250", "1000", "250", True),
        ("clamped", "5", "1000", "1024", False),
        ("clamped", "5", "1000", "3", False),
        ("clamped", "50", "0", "1", True),
    ],
)
def test_which_numbers_may_read_back(asked, before, wanted, now, accepted):
    parameter = item()
    values = [read_value(parameter.kind, text, 64) for text in (before, wanted, now)]
    if accepted:
        assert check_read_back(parameter, asked, *values) == (None if now == wanted else now)
    else:
        with pytest.raises(
            NoEffect, match=f"^The kernel took '{wanted}' for some.parameter, but {now} reads back. (If|Set) "
        ):
            check_read_back(parameter, asked, *values)


def test_a_boolean_for_a_number_is_refused_with_a_hint(root):
    with pytest.raises(
        InvalidInput,
        match="^Invalid value True for .*: some.number takes a whole .*. Write 1 or 0 instead of a boolean.$",
    ):
        set_parameter(root, "some.number", True)


def test_no_policy_lets_another_text_pass():
    parameter = item("charp")
    values = [parse_value(parameter.kind, text, 64) for text in ("a", "b", "c")]
    for asked in ("auto", "exact", "selector", "rounded", "clamped"):
        with pytest.raises(NoEffect):
            check_read_back(parameter, asked, *values)


@pytest.mark.parametrize(
    ("parameter", "policy"),
    [
        (item("charp"), "exact"),
        (item("bool"), "exact"),
        (item("array of int"), "exact"),
        (item("uint"), "auto"),
        (item("selector"), "selector"),
        (item("uint", mode=0o200), "opaque"),
        (item("uint", "nf_conntrack", "hashsize"), "rounded"),
        (item("ulong", "rcutree", "jiffies_till_first_fqs"), "clamped"),
        (item("int", "rcutree", "do_rcu_barrier"), "trigger"),
    ],
)
def test_what_is_known_of_a_parameter_is_its_policy(parameter, policy):
    assert parameter.read_back("auto") == policy
    assert parameter.read_back("exact") == "exact"


def test_of_a_selector_only_a_listed_word_can_be_chosen(root):
    assert not set_parameter(root, "pcie_aspm.policy", "default")[0]
    with pytest.raises(
        InvalidInput, match="pcie_aspm.policy takes one of the words that it lists: .*. Did you mean powersave"
    ):
        set_parameter(root, "pcie_aspm.policy", "powersav")
    plan, result = set_parameter(root, "pcie_aspm.policy", "powersave", check=True)
    assert (plan.rows()[0]["before"], plan.rows()[0]["after"]) == ("default", "powersave")
    assert result["params"][0]["type"] == "selector"
    set_parameter(root, "pcie_aspm.policy", "powersave")
    assert root.read_text("sys/module/pcie_aspm/parameters/policy") == "powersave"


def test_a_selector_can_be_named_as_one_where_the_value_does_not_show_it(root):
    with open(root.path("sys/module/some/parameters/plain"), "w", encoding="ascii") as stream:
        stream.write("[One]\n")
    assert not set_parameter(root, "some.plain", "one", read_back="selector")[0]
    assert set_parameter(root, "some.plain", "one", read_back="exact", check=True)[0]


def test_what_cannot_be_read_is_written_every_time(root):
    path = root.path("sys/module/some/parameters/number")
    os.chmod(path, 0o200)
    if os.geteuid() == 0:
        # Root reads it all the same here, other than in sysfs.
        os.remove(path)
        os.symlink("/proc/self/clear_refs", path)
    for _time in range(2):
        plan, result = set_parameter(root, "some.number", 1)
        assert (len(plan), plan.rows()[0]["why"], result["params"][0]["after"]) == (1, "a write always acts", None)


def test_an_unsafe_parameter_is_refused_before_anything_changes(root):
    label = "panfrost.unstable_ioctls"
    with pytest.raises(
        InvalidInput, match="^Invalid value True for .*The module marks .* as unsafe: .*Set allow_taint to true"
    ):
        set_parameter(root, label, True)
    assert root.read_text("sys/module/panfrost/parameters/unstable_ioctls") == "N\n"
    assert not set_parameter(root, label, False)[0]
    assert len(set_parameter(root, label, True, allow_taint=True)[0]) == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_a_taint_that_nobody_knew_of_is_found_out(allowed, root):
    # The parameter is the kernel's taint at once: what is written there is what is read of the kernel afterwards.
    os.remove(root.path("proc/sys/kernel/tainted"))
    os.symlink("../../../sys/module/some/parameters/number", root.path("proc/sys/kernel/tainted"))
    if allowed:
        assert set_parameter(root, "some.number", 64, allow_taint=True)[1]["taints_added"] == ["user_request"]
        return
    with pytest.raises(
        TapvirtError, match="^Setting some.number tainted the kernel .U.*Set allow_taint to true"
    ) as error:
        set_parameter(root, "some.number", 64)
    assert error.value.fields["taints_added"] == ["user_request"]
    assert root.read_text("sys/module/some/parameters/number") == "5"
    # Flags that were there before are nobody's fault, and neither are others.
    assert set_parameter(root, "some.number", 128)[1]["taints_added"] == ["died"]


def test_every_errno_has_its_cause():
    causes = {
        errno.EACCES: "become root",
        errno.EBUSY: "in use",
        errno.EINVAL: "does not accept this value",
        errno.EIO: "no way to set it while it runs",
        errno.ENODEV: "being unloaded",
        errno.ENOENT: "gone",
        errno.ENOMEM: "memory",
        errno.ENOSPC: "longer than the parameter can hold",
        errno.EOPNOTSUPP: "does not support",
        errno.EPERM: "lockdown protects",
        errno.ERANGE: "range",
        errno.EROFS: "mounted read-only",
        errno.E2BIG: os.strerror(errno.E2BIG),
    }
    for number, text in causes.items():
        message = explain_errno(OSError(number, os.strerror(number)), item(), None)
        assert text in message
        assert message.endswith(f"({errno.errorcode[number]})")
    assert "read-only (mode 0444" in explain_errno(OSError(errno.EACCES, ""), item(mode=0o444), None)
    assert "mounted" not in explain_errno(OSError(errno.EROFS, ""), item("bool_enable_only"), None)
    lockdown = explain_errno(OSError(errno.EPERM, ""), item(), "none [integrity] confidentiality\n")
    assert "kernel lockdown (integrity) protects this hardware parameter" in lockdown
    assert "lockdown is off" in explain_errno(OSError(errno.EPERM, ""), item(), "[none] integrity confidentiality\n")


def test_more_than_a_page_is_refused_before_the_write(root):
    with pytest.raises(InvalidInput, match="takes a value of at most 4095 bytes"):
        set_parameter(root, "some.plain", "x" * 4096)
    assert root.read_text("sys/module/some/parameters/plain") == "one two\n"
    set_parameter(root, "some.plain", "x" * 4095)
