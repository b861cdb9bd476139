# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles with tables report: the path in the user's table, and the sentence without what Ansible adds to it."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.stubs import ROOT, Stubs, artifact

TABLES = {
    "params": {
        "module_params_wanted": [{"module": "kvm", "name": "nx", "value": "1", "persist": "none"}],
        "module_params_host": [{"module": "printk", "name": "time", "value": "Y", "persist": "nowhere"}],
    },
    "domains": {
        "domains_wanted": [{"name": "web", "state": "absent"}],
        "domains_host": [{"name": "db7", "xml": "<domain type='test'>\n<memroy/>\n</domain>"}],
    },
}
REFUSED = """
option = {option!r}
error = {{"option": option + "[1].value", "value": 5, "problem": "No.", "hint": None, "candidates": []}}
return {{"failed": True, "msg": f"Invalid value 5 for {{option}}[1].value, line 2: No.", "error": error}}
"""


@pytest.mark.parametrize(
    ("playbook", "module", "option", "told"),
    [
        ("params", "kernel_module_param", "params", "module_params_host[0].value, line 2 (printk.time)"),
        ("domains", "libvirt_domain", "domains", "domains_host[0].value, line 2 (db7)"),
    ],
)
def test_the_path_is_that_of_the_table(
    tmp_path: pathlib.Path, playbook: str, module: str, option: str, told: str
) -> None:
    stubs = Stubs(tmp_path)
    actions = tmp_path / "ansible_collections/tapvirt/host/plugins/action"
    (actions / f"{module}.py").symlink_to(ROOT / "plugins" / "action" / f"{module}.py")
    modules = actions.parent / "modules"
    modules.unlink()
    modules.mkdir()
    for path in (ROOT / "plugins" / "modules").glob("*.py"):
        if path.stem != module:
            (modules / path.name).symlink_to(path)
    (modules / f"{module}.py").write_text(
        "#!/usr/bin/python\n# WANT_JSON\nimport json\n\n\ndef main():\n"
        + "".join(f"    {line}\n" for line in REFUSED.format(option=option).strip().splitlines())
        + "\n\nprint(json.dumps(main()))\n",
        encoding="utf-8",
    )
    done = stubs.run(playbook, {"h1": TABLES[playbook]}, "--tags", "report")
    failure = artifact(done)[f"{playbook}_drift"]["failed"]["h1"]
    assert failure == f"could not be compared: Invalid value 5 for {told}: No.", done.stdout + done.stderr
    assert f'"option": "{told.partition(",")[0]}"' in done.stdout
    assert f"{option}[1]" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("playbook", "table", "told"),
    [
        (
            "params",
            "module_params_group_kvm",
            "Invalid value 'x' for module_params_group_kvm: A table is a list of entries",
        ),
        ("domains", "domains_group_kvm", "Invalid value 'x' for domains_group_kvm: A table is a list of entries"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: pathlib.Path, playbook: str, table: str, told: str
) -> None:
    done = Stubs(tmp_path).run(playbook, {"h1": {table: "x"}}, "--tags", "report")
    failure = artifact(done)[f"{playbook}_drift"]["failed"]["h1"]
    assert failure.startswith(f"could not be compared: {told}"), done.stdout + done.stderr
