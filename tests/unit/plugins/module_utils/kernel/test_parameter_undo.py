# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run whose values do not last until it looks again: real files of sysfs, one of which has two names."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.tests.unit.support.kernel.parameters import set_parameters

OWN = "etc/modprobe.d/zz-tapvirt.conf"
JOURNAL = "var/lib/tapvirt/kernel_module_param.json"
TEXT = "# by hand\nblacklist nouveau\noptions other size=1 flag\n"
SHARED = pathlib.Path("/sys/module/tcp_cubic/parameters/hystart_low_window")
EARLIER = pathlib.Path("/sys/module/tcp_cubic/parameters/hystart_ack_delta_us")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may write module parameters"),
    pytest.mark.skipif(not SHARED.exists() or not EARLIER.exists(), reason="this kernel has no such parameters"),
    pytest.mark.usefixtures("this_kernel"),
]


@pytest.fixture
def twins(tmp_path) -> t.Iterator[Root]:
    """A host whose loadable module "twin" has two parameters that are one to the kernel, and "other" a third."""
    (tmp_path / "proc").symlink_to("/proc")
    for module, name, path in (("twin", "one", SHARED), ("twin", "two", SHARED), ("other", "size", EARLIER)):
        parameters = tmp_path / "sys/module" / module / "parameters"
        parameters.mkdir(parents=True, exist_ok=True)
        (parameters / name).symlink_to(path)
        (parameters.parent / "initstate").write_text("live\n")
    (tmp_path / OWN).parent.mkdir(parents=True)
    (tmp_path / OWN).write_text(TEXT)
    before = {path: (path.read_text(), path.stat().st_mode) for path in (SHARED, EARLIER)}
    yield Root(str(tmp_path))
    for path, (text, mode) in before.items():
        path.chmod(mode)
        path.write_text(text)


def set_lasting(root: Root, values: t.Mapping[str, int]) -> None:
    set_parameters(root, values, persist="auto")


def numbers() -> tuple[int, int]:
    return int(SHARED.read_text()), int(EARLIER.read_text())


def verdicts(error: TapvirtError) -> dict[str, tuple[str, bool]]:
    json.dumps(error.fields)
    rows = error.fields["params"]
    assert [row["after"] for row in rows] == [numbers()[row["module"] == "other"] for row in rows]
    return {"{module}.{name}".format(**row): (row["verdict"], row["changed"]) for row in rows}


def test_what_has_no_effect_in_the_end_is_undone_with_all_that_was_set_before_it(twins):
    shared, earlier = numbers()
    with pytest.raises(TapvirtError) as error:
        set_lasting(twins, {"other.size": earlier + 1, "twin.one": shared + 1, "twin.two": shared + 2})
    assert "no effect: twin.one (it has another value). Everything is as it was before." in error.value.message
    assert numbers() == (shared, earlier)
    assert twins.read_text(OWN) == TEXT
    assert not twins.exists(JOURNAL)
    assert (error.value.fields["changed"], error.value.fields["not_rolled_back"]) == (False, [])
    assert [row["error"] for row in error.value.fields["params"]] == [None, error.value.row(), None]
    assert verdicts(error.value) == {
        "other.size": ("rolled_back", False),
        "twin.one": ("failed", False),
        "twin.two": ("rolled_back", False),
    }
    set_lasting(twins, {"other.size": earlier + 1, "twin.one": shared + 1})
    assert numbers() == (shared + 1, earlier + 1)
    assert twins.read_text(OWN) == TEXT.replace("size=1", f"size={earlier + 1}") + f"options twin one={shared + 1}\n"


def test_an_undo_that_fails_is_named_and_the_others_are_undone(twins):
    shared, earlier = numbers()
    # From the moment that our own file is there, the kernel lets nobody write the first parameter: not even root.
    watching = [True]

    def protect(event: str, arguments: tuple[t.Any, ...]) -> None:
        if watching[0] and event == "os.rename" and str(arguments[1]).endswith(OWN):
            EARLIER.chmod(0o444)

    sys.addaudithook(protect)
    try:
        with pytest.raises(TapvirtError) as error:
            set_lasting(twins, {"other.size": earlier + 1, "twin.one": shared + 1, "twin.two": shared + 2})
    finally:
        watching[0] = False
    assert error.value.message.endswith("Not everything could be put back: other.size: Permission denied.")
    assert numbers() == (shared, earlier + 1)
    assert twins.read_text(OWN) == TEXT
    assert (error.value.fields["changed"], error.value.fields["not_rolled_back"]) == (
        True,
        ["other.size: Permission denied"],
    )
    assert verdicts(error.value) == {
        "other.size": ("not_rolled_back", True),
        "twin.one": ("failed", False),
        "twin.two": ("rolled_back", False),
    }
    left, failed, other = error.value.fields["params"]
    assert left["pending"] == ["this could not be put back: other.size: Permission denied"]
    assert left["error"]["problem"] == "This could not be put back: other.size: Permission denied."
    assert (failed["error"], other["error"]) == (error.value.row(), None)
