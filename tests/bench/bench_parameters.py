# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What setting module parameters costs where nothing is to change, against an empty module in the same run."""

from __future__ import annotations

import pathlib
import resource
import subprocess
import tempfile
import time
import typing as t

from host import CLEAN, HOST_PYTHON, packed, packed_empty

TURNS = 15


def own_values() -> tuple[list[dict[str, t.Any]], int]:
    """Return all parameters with the values that they have, those that can be set first, and how many these are."""
    rows = []
    for path in sorted(pathlib.Path("/sys/module").glob("*/parameters/*")):
        if path.stat().st_mode & 0o400:
            text = path.read_text("utf-8", "surrogateescape")
            value = text[:-1] if text.endswith("\n") else text
            rows.append((not path.stat().st_mode & 0o200, path.parts[3], path.parts[5], value))
    rows.sort()
    params = [{"module": module, "name": name, "value": value} for _fixed, module, name, value in rows]
    return params, sum(not row[0] for row in rows)


def measure(paths: t.Sequence[pathlib.Path]) -> list[tuple[float, float]]:
    """Return the least wall and the least CPU time of each in milliseconds, run in turns, as the machine changes."""
    best = [(float("inf"), float("inf"))] * len(paths)
    for _turn in range(TURNS):
        for number, path in enumerate(paths):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = time.perf_counter()
            done = subprocess.run([HOST_PYTHON, path], env=CLEAN, capture_output=True, check=False)
            wall = time.perf_counter() - started
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best[number] = (min(best[number][0], wall * 1000), min(best[number][1], cpu * 1000))
            if done.returncode or b'"changed": true' in done.stdout:
                raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return best


def main() -> None:
    """Print a table: time, the time above the empty module's, and how many times that of one parameter."""
    params, writable = own_values()
    with tempfile.TemporaryDirectory() as name:
        top = pathlib.Path(name)
        paths = [packed_empty(top)]
        counts = (1, writable, min(200, len(params)))
        for count in counts:
            arguments = {"params": params[:count]}
            paths.append(packed("kernel_module_param", arguments, top / f"packed-{count}.py"))
        empty, *times = measure(paths)
    print(f"{'':<34} {'ms':>9} {'above':>9} {'CPU ms':>9} {'above':>9} {'x one':>9}")
    print(f"{'an empty module':<34} {empty[0]:>9.1f} {'':>9} {empty[1]:>9.1f}")
    for count, (wall, cpu) in zip(counts, times, strict=True):
        row = f"{wall:>9.1f} {wall - empty[0]:>9.1f} {cpu:>9.1f} {cpu - empty[1]:>9.1f} {cpu / times[0][1]:>9.2f}"
        print(f"{f'{count} parameters, no change':<34} {row}")


if __name__ == "__main__":
    main()
