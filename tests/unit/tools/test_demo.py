# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys

from ansible_collections.tapvirt.host.tests.tools.demo import end_domains, recap_changes, told

OUTPUT = """
PLAY [one] *****
TASK [x] *****
changed: [trace1] => {"note": "trace9 : ok=1 changed=1"}

PLAY RECAP *********************************************************************
localhost                  : ok=4    changed=0    unreachable=0    failed=0    skipped=0    rescued=0    ignored=0
trace1                     : ok=14   changed=12   unreachable=0    failed=0    skipped=0    rescued=0    ignored=0
"""


def test_the_recap_reports_the_changes_of_each_host():
    assert recap_changes(OUTPUT) == {"localhost": 0, "trace1": 12}


def test_what_the_last_task_reports():
    result = '{\n    "msg": [\n        "one",\n        "two"\n    ]\n}'
    text = f"TASK [Print a summary] ****\nok: [trace1] => {result}\n\nPLAY RECAP"
    assert told(text) == ["one", "two"]
    assert told("PLAY [one]\n") == []


def test_without_a_recap_there_is_nothing():
    assert recap_changes("PLAY [one]\n") == {}


def test_only_processes_of_the_directory_are_ended(tmp_path, start):
    folder = tmp_path / "embed"
    (folder / "run" / "qemu").mkdir(parents=True)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, other = start([*sleep, f"{folder}/lib"]), start(sleep)
    (folder / "run" / "qemu" / "ours.pid").write_text(f"{ours.pid}\n")
    (folder / "run" / "qemu" / "other.pid").write_text(f"{other.pid}\n")
    (folder / "run" / "qemu" / "gone.pid").write_text("4194304\n")
    assert end_domains(folder) == 1
    assert ours.wait(10) == -15
    assert other.poll() is None
    assert not folder.exists()
