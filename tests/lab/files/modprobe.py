# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host of the lab: print how modprobe reads trees of configuration files.

Standard input is JSON: ``modules`` (names of modules that the host has files of), ``trees`` (each: file -> text).
Standard output is JSON, for each tree: ``config`` (output of ``modprobe -c``), ``loads`` (module -> output
of ``modprobe --show-depends``) and ``barred`` (one module -> whether the same prints nothing with ``-b``).
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

PLACES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")


def few_modules(top: str, names: list[str]) -> list[str]:
    """Make a small tree of modules and return the options with which modprobe reads it."""
    directory, release = next(
        (directory, release)
        for directory in ("/lib/modules", "/usr/lib/modules")
        for release in (sorted(os.listdir(directory)) if os.path.isdir(directory) else ())
    )
    here = os.path.join(top, "lib", "modules", release)
    os.makedirs(os.path.join(here, "kernel"))
    for name in names:
        pattern = os.path.join(directory, release, "kernel", "**", name + ".ko*")
        shutil.copy(glob.glob(pattern, recursive=True)[0], os.path.join(here, "kernel"))
    for name in glob.glob(os.path.join(directory, release, "modules.[bo]*")):
        shutil.copy(name, here)
    subprocess.run(["depmod", "-b", top, release], check=True)
    return ["-d", top, "-S", release]


def printed(argv: list[str]) -> list[str]:
    """Return the output of a command by lines; modprobe reports lines that it ignores on standard error."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").split("\n")[:-1]


def main() -> None:
    work = json.load(sys.stdin)
    rows = []
    with tempfile.TemporaryDirectory() as top:
        where = few_modules(os.path.join(top, "modules"), work["modules"])
        os.mkdir(os.path.join(top, "none"))
        for number, files in enumerate(work["trees"]):
            base = os.path.join(top, str(number))
            for name, text in files.items():
                path = os.path.join(base, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8", newline="") as stream:
                    stream.write(text)
            places = [os.path.join(base, place, "modprobe.d") for place in PLACES]
            there = [place for place in places if os.path.isdir(place)] or [os.path.join(top, "none")]
            argv = ["modprobe", *where, *(word for place in there for word in ("-C", place))]
            config = printed([*argv, "-c"])
            module = work["modules"][number % len(work["modules"])]
            rows.append(
                {
                    "config": config[: config.index("# End of configuration files. Dumping indexes now:")],
                    "loads": {name: printed([*argv, "--show-depends", name]) for name in work["modules"]},
                    "barred": {module: not printed([*argv, "-b", "--show-depends", module])},
                }
            )
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
