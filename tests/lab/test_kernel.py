# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The view of modprobe.d that persisted parameters depend on, against modprobe itself."""

from __future__ import annotations

import json
import os
import random
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules import modprobe_d
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.modules.modinfo import canonical

from .support.places import FILES

COUNT = 5000 if os.environ.get("TAPVIRT_SOAK") else 500
SCRIPT = FILES / "modprobe.py"
MODULES = ["dummy", "kvm-amd", "nbd", "null_blk"]
NAMES = [*MODULES, "dummy", "kvm_amd", "null-blk", "brd", "alias0"]
OPTIONS = ["a=1", "b=2", 'c="x y"', "# note", "d", "e=", '"f=g h"', "a=0x10", "i=it's", "k==", "l=a,b", "m-n=1"]
OPTIONS += ["p=C:\\dir", "q=a\\\\b", 'r="s\\t\\\\"', "\u00e9=\u00fc", "v=1\r", 'w="x\ty"']
OWN_VALUES = ["1", "", "C:\\dir", "a b\\", "it's # ok", "\u00fc x", "a\\\\", "=", "-"]
COMMANDS = ["/bin/true", "/sbin/modprobe -i kvm $CMDLINE_OPTS && echo \\$x", "echo 'a  b'"]
PATTERNS = ["kvm*", "n?d", "*", "[dn]*", "null[-_]blk", "kvm-???"]


def generated_line(chance: random.Random) -> str:
    """Return one line, as people write them; a few are wrong."""
    blank = chance.choice([" ", " ", "  ", "\t"])
    options = blank.join(chance.sample(OPTIONS, chance.randint(0, 4)))
    line = f"options{blank}{chance.choice(NAMES)}{blank}{options}"
    if chance.random() < 0.3:
        name = chance.choice([*NAMES, *NAMES, *PATTERNS])
        before, after = (" ".join(chance.sample(["nbd", "null_blk"], chance.randint(0, 2))) for _side in range(2))
        softdep = f"softdep {chance.choice([*NAMES, 'dum*'])} pre: {before} post: {after}"
        blacklist = f"blacklist{blank}{chance.choice(NAMES)}"
        install = f"install {name}{blank}{chance.choice(COMMANDS)}"
        line = chance.choice(
            [blacklist, blacklist, softdep, softdep, install, "remove nbd /bin/true", "alias alias0 nbd"]
        )
    line = chance.choice(
        [line] * 8 + ["#" + line, "  " + line, line + " ", "", "options", "blacklist", "  # x", "bad x"]
    )
    return line.replace(" ", " \\\n", 1) if chance.random() < 0.1 else line


def generated_tree(number: int) -> dict[str, str]:
    """Return files of modprobe.d in some of its directories, and our own file."""
    chance = random.Random(number)
    own = {("own", "value"): OWN_VALUES[number % len(OWN_VALUES)], ("own", "other"): "1"}
    names = ["10-a.conf", "b.conf", "B.conf", "zz.conf", "x.txt", "_.conf", ".h.conf"]
    files = {modprobe_d.OWN_FILE: modprobe_d.edited("", own)}
    for directory in chance.sample(modprobe_d.DIRECTORIES[:-1], 3):
        for name in chance.sample(names, chance.randint(0, 4)):
            lines = [generated_line(chance) for _line in range(chance.randint(0, 6))]
            files[f"{directory}/{name}"] = "\n".join(lines) + chance.choice(["\n", "\n", "", "\\"])
    return files


@pytest.fixture(scope="module")
def trees(lab, tmp_path_factory) -> list[tuple[Root, list[modprobe_d.Line], dict[str, t.Any]]]:
    """For each tree: a root with the tree, our lines, and the output of modprobe on the builder."""
    files = [generated_tree(number) for number in range(COUNT)]
    work = json.dumps({"modules": MODULES, "trees": files})
    script = SCRIPT.read_text(encoding="utf-8")
    done = lab.run("builder", "python3", "-c", script, stdin=work, timeout=COUNT)
    assert done.returncode == 0, done.stderr
    command_line = lab.run("builder", "cat", "/proc/cmdline").stdout
    rows = []
    for number, (tree, theirs) in enumerate(zip(files, json.loads(done.stdout), strict=True)):
        top = tmp_path_factory.mktemp(f"tree-{number}")
        for name, text in {**tree, "proc/cmdline": command_line}.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        root = Root(str(top))
        rows.append((root, modprobe_d.read_lines(root), theirs))
    return rows


def options_of(root: Root, lines: list[modprobe_d.Line]) -> list[tuple[str, str, str | None]]:
    """Return every option, those of the kernel command line last, without parameters of the kernel itself."""
    options = modprobe_d.options_of(lines) + modprobe_d.command_line_options(root)
    return [(option.module, option.name, option.value) for option in options if option.module != "kernel"]


def printed_options(printed: list[str]) -> list[tuple[str, str, str | None]]:
    """Return the options in lines of modprobe, which has already evaluated their backslashes."""
    lines = [modprobe_d.Line(*line.partition(" ")[::2], "") for line in printed]
    return [(option.module, option.name, option.value) for option in modprobe_d.options_of(lines)]


def test_options_agree_with_modprobe_c(trees):
    count = 0
    for number, (root, lines, theirs) in enumerate(trees):
        ours = options_of(root, lines)
        assert ours == printed_options(theirs["config"]), number
        assert ("own", "value", OWN_VALUES[number % len(OWN_VALUES)]) in ours, number
        for command in ("blacklist", "install"):
            found = [line.rest for line in lines if line.command == command and line.rest]
            printed = [line.partition(" ")[2] for line in theirs["config"] if line.startswith(command + " ")]
            # kmod prints the names of modules with the sign that sysfs has, and the white space as it is.
            assert [canonical("".join(rest.split())) for rest in found] == [
                canonical("".join(rest.split())) for rest in printed
            ], number
        count += len(ours)
    assert count > COUNT * 5


def test_loads_agree_with_modprobe(trees):
    replaced = barred = loaded = 0
    for number, (root, lines, theirs) in enumerate(trees):
        for module in MODULES:
            shown = theirs["loads"][module]
            install = modprobe_d.install_line(lines, canonical(module))
            own = [line for line in shown if line.startswith("insmod ") and f"/{module}.ko" in line]
            assert bool(own) is (install is None), (number, module)
            if install is None:
                words = printed_options([f"options {module} {line.split(' ', 2)[2]}" for line in own[:1]])
                ours = [row for row in options_of(root, lines) if row[0] == canonical(module)]
                assert words == ours, (number, module)
                loaded += bool(words)
            else:
                replaced += 1
        module = MODULES[number % len(MODULES)]
        blacklist = modprobe_d.line_about(lines, "blacklist", canonical(module))
        assert theirs["barred"][module] is (blacklist is not None), number
        barred += blacklist is not None
    assert min(replaced, barred, loaded) > COUNT / 20


def test_softdeps_agree_with_modprobe(trees):
    followed = 0
    for number, (_root, lines, theirs) in enumerate(trees):
        softdep = modprobe_d.line_about(lines, "softdep", "dummy")
        names = [
            line.split()[1].rpartition("/")[2].partition(".")[0] for line in theirs["loads"]["dummy"] if "/" in line
        ]
        if softdep is None:
            continue
        before = softdep.rest.partition("pre:")[2].partition("post:")[0].split()
        replaced = [name for name in MODULES if modprobe_d.install_line(lines, canonical(name)) is not None]
        for name in before:
            if name in MODULES and name not in replaced:
                assert names.index(name) < names.index("dummy"), number
                followed += 1
    assert followed > COUNT / 50
