# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gather on the controller: where its files are, that a table is fetched once, and who could not give one."""

from __future__ import annotations

import pathlib

from ansible_collections.tapvirt.host.tests.unit.support.stubs import ROOT, Stubs

FACTS = """
kernel = {"release": "6." + told["id"], "version": "#1", "build_id": told["id"]}
return {"changed": False, "ansible_facts": {"tapvirt_kernel": kernel}}
"""


def test_files_are_where_it_was_started_and_who_gives_no_table_is_named(tmp_path: pathlib.Path) -> None:
    stubs = Stubs(tmp_path, kernel_facts=FACTS)
    hosts = {
        "h1": {"told": {"id": "aa"}},
        "h2": {"told": {"id": "bb"}, "ansible_python_interpreter": "/nowhere/python"},
    }
    done = stubs.run("gather", hosts, gather_dest="outrel")
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (ROOT / "playbooks" / "outrel").exists()
    table = tmp_path / "outrel" / "symbols" / "aa.kallsyms"
    assert "_text" in table.read_text(encoding="ascii")
    assert not table.with_name("bb.kallsyms").exists()
    assert "The kernel with the build-id bb has no symbol table: /proc/kallsyms of this host" in done.stdout
    assert "interpreter" in done.stdout.partition("has no symbol table")[2].partition("\n")[0], "the reason, not hidden"

    table.write_text("as it was\n", encoding="ascii")
    done = stubs.run("gather", {"h1": hosts["h1"]}, "--tags", "symbols", gather_dest="outrel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert table.read_text(encoding="ascii") == "as it was\n"
