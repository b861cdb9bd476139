# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a campaign of ten seconds costs on three hosts of the lab, against ansible.builtin.ping of them in the same run.

The modules are built before. It needs the lab: ./dev lab up trace1 trace2 trace3 builder.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
import time
import typing as t

HOSTS = "trace1:trace2:trace3"
SECONDS = 10
TURNS = 3
ALLOWED_PINGS = 3
SCRIPT = """#: record count key:string count:integer
global least = 0
global calls
probe kprobe.function("__x64_sys_sched_rr_get_interval") { calls <<< 1 }
probe end { printf("{\\"kind\\":\\"count\\",\\"key\\":\\"least %d\\",\\"count\\":%d}\\n", least, @count(calls)) }
"""
PING: dict[str, t.Any] = {"ansible.builtin.ping": {}}


def trace(script: pathlib.Path, least: int) -> dict[str, t.Any]:
    """Return the task of a campaign."""
    variables = {"trace_script": str(script), "trace_duration_seconds": SECONDS, "trace_globals": {"least": least}}
    return {"ansible.builtin.include_role": {"name": "tapvirt.host.trace"}, "vars": variables}


def run(inventory: str, folder: pathlib.Path, task: dict[str, t.Any]) -> float:
    """Run a play of one task; return how long the command took, in seconds."""
    play = folder / "play.yml"
    play.write_text(json.dumps([{"hosts": HOSTS, "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
    environment = os.environ | {"ANSIBLE_PIPELINING": "1", "ANSIBLE_NOCOLOR": "1"}
    argv = ["ansible-playbook", "-i", inventory, str(play)]
    begun = time.monotonic()
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-1000:])
    return time.monotonic() - begun


def main() -> None:
    """Print the times of each turn, and of the best ones what the campaign takes above its ten seconds, in pings."""
    inventory = os.environ.get("TAPVIRT_LAB_INVENTORY", "")
    if not pathlib.Path(inventory).is_file():
        print("Not measured: no lab is up (./dev lab up; ./dev exec python tests/bench/bench_campaign.py).")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        script = folder / "bench_campaign.stp.j2"
        script.write_text(SCRIPT, encoding="utf-8")
        run(inventory, folder, trace(script, 0))
        pings, campaigns = [], []
        print(f"{'turn':<6} {'ping s':>9} {'campaign s':>11} {'above, in pings':>16}")
        for turn in range(1, TURNS + 1):
            pings.append(run(inventory, folder, PING))
            campaigns.append(run(inventory, folder, trace(script, turn)))
            print(f"{turn:<6} {pings[-1]:>9.1f} {campaigns[-1]:>11.1f} {(campaigns[-1] - SECONDS) / pings[-1]:>16.2f}")
    ratio = (min(campaigns) - SECONDS) / min(pings)
    print(f"{'best':<6} {min(pings):>9.1f} {min(campaigns):>11.1f} {ratio:>16.2f}   at most {ALLOWED_PINGS}")


if __name__ == "__main__":
    main()
