# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The view of modprobe.d that persisted parameters depend on, against modprobe itself."""

from __future__ import annotations

import io
import os
import random
import shlex

from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel import modprobe_d


def generated_tree(number: int) -> dict[str, str]:
    """Return files of modprobe.d, as people write them."""
    chance = random.Random(number)
    pieces = ["a=1", "b=2", 'c="x y"', "# note", "d", "e=", '"f=g h"', "a=0x10", "i=it's", "k==", "l=a,b"]
    modules = ["dummy", "kvm-amd", "kvm_amd", "snd-pcm", "nbd"]
    files = {}
    for directory in ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d"):
        for name in chance.sample(
            ["10-a.conf", "b.conf", "B.conf", "zz.conf", "x.txt", "_.conf"], chance.randint(0, 4)
        ):
            lines = []
            for _line in range(chance.randint(0, 6)):
                options = chance.choice([" ", "  ", "\t"]).join(chance.sample(pieces, chance.randint(0, 4)))
                line = "options {}{}{}".format(chance.choice(modules), chance.choice([" ", "\t", "  "]), options)
                line = chance.choice([line] * 6 + ["#" + line, "  " + line, "blacklist dummy", "", "options", "  # x"])
                lines.append(line.replace(" ", " \\\n", 1) if chance.random() < 0.1 else line)
            files["{}/{}".format(directory, name)] = "\n".join(lines) + chance.choice(["\n", ""])
    return files


def test_the_view_of_modprobe_d_is_modprobes(lab, tmp_path):
    count = 500 if os.environ.get("TAPVIRT_SOAK") else 100
    script = io.StringIO()
    script.write("set -e; top=$(mktemp -d); trap 'rm -rf $top' EXIT; mkdir $top/none; cd $top\n")
    script.write('modprobe -c -C none | grep ^options >none.txt || true; echo "$(wc -l <none.txt)"\n')
    for number in range(count):
        directories = set()
        for name, text in generated_tree(number).items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            directories.add(os.path.dirname(name))
            script.write(
                "mkdir -p {0}/{1}; printf %s {2} >{0}/{3}\n".format(
                    number, os.path.dirname(name), shlex.quote(text), name
                )
            )
        places = " ".join("-C {}/{}".format(number, place) for place in modprobe_d.DIRECTORIES if place in directories)
        script.write("modprobe -c {} 2>/dev/null | grep ^options || true; echo %%%\n".format(places or "-C none"))
    output = lab.run("builder", "sh", stdin=script.getvalue(), timeout=300)
    assert output.returncode == 0, output.stderr
    first, _newline, rest = output.stdout.partition("\n")
    theirs = rest.split("%%%\n")
    seen = 0
    for number in range(count):
        lines = [line for line in modprobe_d.read_lines(Root(str(tmp_path / str(number)))) if line.command == "options"]
        mine = [(option.module, option.name, option.value) for option in modprobe_d.options_of(lines)]
        printed = [line for line in theirs[number].splitlines() if line]
        printed = printed[: len(printed) - int(first)]
        parsed = modprobe_d.options_of(modprobe_d.parse_lines("\n".join(printed), ""))
        assert mine == [(option.module, option.name, option.value) for option in parsed], number
        seen += len(mine)
    assert seen > count * 3
