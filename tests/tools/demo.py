# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: one playbook on the lab until it changes nothing, and what its output says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

from .prepare import Place
from .steps import KEY, LOGS, ROOT, DevError, Steps, run

DEMO_HOSTS = ["trace1", "trace2", "trace4", "builder"]
REPORT = ROOT / "report" / "index.html"
WRITTEN = LOGS / "report"  # ansible-core reads a $ in a path as a variable's, and the tree may lie in a folder with one
EMBED = Path("/var/tmp") / f"tapvirt-{KEY}"  # QEMU runs as a user of its own, which cannot enter a home folder


def recap_changes(text: str) -> dict[str, int]:
    """Return host -> changed tasks from the recap at the end of a playbook's output."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", text, re.MULTILINE)}


def told(text: str) -> list[str]:
    """Return the sentences of the playbook's last task, which says what was done on which host."""
    found = re.findall(r"^TASK \[Print a summary\].*?=> (\{.*?^\})", text, re.MULTILINE | re.DOTALL)
    return [str(line) for line in json.loads(found[-1])["msg"]] if found else []


def play_pass(
    steps: Steps, place: Place, inventory: Path, number: int
) -> tuple[list[tuple[str, float]], list[str], dict[str, int]]:
    """Run the demonstration's playbook once; return each play's time, what it says was done, and what changed where.

    :raises DevError: it failed, or the second pass changed something.
    """
    make_embed_root()
    plays: list[tuple[str, float]] = []

    def watch(log: Path) -> str:
        titles = re.findall(r"^(PLAY|TASK) \[(.*?)\] \*", log.read_text("utf-8", "replace"), re.MULTILINE)
        for _kind, name in [title for title in titles if title[0] == "PLAY"][len(plays) :]:
            plays.append((name, time.monotonic()))
        return " / ".join([plays[-1][0], titles[-1][1]]) if plays else ""

    playbook = place.tree / "playbooks" / "demo.yml"
    here = playbook.parent / "inventory" / "this_machine.yml"
    only = ",".join([*DEMO_HOSTS, "localhost"])
    argv: list[str | Path] = ["ansible-playbook", "-i", inventory, "-i", here, "--limit", only, playbook]
    # As JSON: a path may hold spaces.
    argv += ["-e", json.dumps({"demo_dest": str(WRITTEN), "demo_embed_root": str(EMBED)})]
    env = place.env | {"ANSIBLE_PIPELINING": "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_INJECT_FACT_VARS": "0"}
    text = run(steps, f"demo-{number}", argv, env, place.tree, watch, telling=r"^(fatal|failed|ERROR|\[ERROR\]):")
    ends = [start for _name, start in plays[1:]] + [time.monotonic()]
    print("\n" + text[text.rindex("PLAY RECAP") :].rstrip())
    changed = {host: count for host, count in recap_changes(text).items() if count}
    if number > 1 and changed:
        log = LOGS / f"demo-{number}.log"
        raise DevError(f"The second pass must change nothing, and it changed: {changed}. Its output: {log}")
    rows = [(f"pass {number}: {name}", end - start) for (name, start), end in zip(plays, ends, strict=True)]
    return rows, told(text), changed


def keep_report() -> Path:
    """Put the page that the last pass wrote into the tree, and return where it is.

    :raises DevError: there is none.
    """
    if not (WRITTEN / REPORT.name).exists():
        raise DevError(f"The demonstration ran, but its report is not there: {WRITTEN / REPORT.name}")
    shutil.copytree(WRITTEN, REPORT.parent, dirs_exist_ok=True)
    shutil.rmtree(WRITTEN)
    return REPORT


def make_embed_root() -> None:
    """Make the folder of the machine's own domains, which is in a place where others can write.

    :raises DevError: somebody else has made it.
    """
    EMBED.mkdir(mode=0o711, exist_ok=True)
    if EMBED.is_symlink() or EMBED.stat().st_uid != os.geteuid():
        raise DevError(f"{EMBED} is not ours; remove it.")


def end_domains(folder: Path = EMBED) -> int:
    """End the machine's own domains, which outlive the demonstration, and remove their folder; return how many."""
    ended = 0
    for record in folder.glob("run/qemu/*.pid"):
        pid = record.read_text("ascii").strip()
        command = Path(f"/proc/{pid}/cmdline")
        if record.stem != "driver" and command.exists() and str(folder).encode() in command.read_bytes():
            os.kill(int(pid), signal.SIGTERM)
            ended += 1
    shutil.rmtree(folder, ignore_errors=True)
    return ended
