# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""console_logs on the controller: names that are no paths, a console taken over midway, what cannot be kept."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.stubs import Stubs, artifact

LISTED = """
rows = [{"name": domain, "state": "running", "console": {"type": "pty"}} for domain in told["domains"]]
return {"changed": False, "domains": rows, "truncated": told.get("truncated", False)}
"""
# What async_status takes for the record of a job that has ended.
READ = """
text = "said by " + options["name"] + chr(10)
said = {"changed": False, "text": text, "bytes": len(text), "matched": False, "stopped_by": "timeout"}
if options["name"] in told.get("taken", []):
    said.update(failed=True, msg="somebody else may have taken it over.", stopped_by="lost")
job = "job-" + options["name"]
folder = pathlib.Path(os.environ["ANSIBLE_ASYNC_DIR"])
folder.mkdir(exist_ok=True)
(folder / job).write_text(json.dumps({**said, "ansible_job_id": job, "started": 1, "finished": 1}), encoding="utf-8")
return {"changed": False, "ansible_job_id": job, "started": 1, "finished": 0}
"""


@pytest.fixture
def consoles(tmp_path: pathlib.Path) -> Stubs:
    return Stubs(tmp_path, libvirt_domain_info=LISTED, libvirt_console=READ)


def test_names_are_no_paths_and_a_console_taken_over_counts_as_failed(consoles: Stubs) -> None:
    hosts = {"../../escaped": {"told": {"domains": ["web", "taken"], "taken": ["taken"], "truncated": True}}}
    done = consoles.run("console_logs", hosts, console_logs_dest="~/kept/here")
    assert done.returncode == 2, done.stdout + done.stderr
    kept = consoles.top / "home" / "kept" / "here" / "%2E.%2F..%2Fescaped"
    assert sorted(path.relative_to(consoles.top) for path in consoles.top.rglob("*.log")) == [
        (kept / name).relative_to(consoles.top) for name in ("taken.log", "web.log")
    ]
    assert (kept / "taken.log").read_text(encoding="utf-8") == "said by taken\n"
    assert '"msg": "somebody else may have taken it over."' in done.stdout
    assert "more than 2 domains; those after taken are not read" in done.stdout
    summary = artifact(done)["console_logs"]
    assert (summary["read"], summary["bytes"], summary["failed_count"], summary["truncated"]) == (1, 26, 1, 1)
    assert summary["failed"] == {"../../escaped": "somebody else may have taken it over."}
    assert [*(consoles.top / "async").iterdir()] == []


def test_nothing_is_read_where_nothing_can_be_kept_and_nothing_is_left_where_keeping_fails(consoles: Stubs) -> None:
    done = consoles.run("console_logs", {"h1": {"told": {"domains": ["web"]}}}, console_logs_dest="/dev/null/x")
    assert done.returncode == 2, done.stdout + done.stderr
    assert consoles.calls("libvirt_console") == []
    (consoles.top / "kept" / "h1" / "web.log").mkdir(parents=True)
    (consoles.top / "kept" / "h1" / "web.log" / "in the way").touch()
    done = consoles.run(
        "console_logs", {"h1": {"told": {"domains": ["web"]}}}, console_logs_dest=str(consoles.top / "kept")
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert consoles.calls("libvirt_console") != []
    assert [*(consoles.top / "async").iterdir()] == []
