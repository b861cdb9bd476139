# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of scripts that needs no SystemTap, against SystemTap's own parser: its examples, constructs and faults."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.script.deploy import prepare
from ansible_collections.tapvirt.host.tests.unit.support.systemtap.stap_verdicts import (
    differs,
    fill_arguments,
    mutants,
    read_verdicts,
    refusal,
    whole_refusal,
)

from .support.places import TREE

FIXTURES = TREE / "tests" / "unit" / "fixtures" / "systemtap"
# Arguments of a script: none, numbers, or names.
ARGUMENTS = ("", "9", "vfs")
STUB_TREE = """
mkdir -p tree/include/config macros home
: >tree/.config
: >tree/Module.symvers
echo 6.12.0 >tree/include/config/kernel.release
export SYSTEMTAP_DIR=$PWD/home HOME=$PWD/home TREE=$PWD/tree
# The parser needs the macros of the tapset and nothing else of it: without the rest it answers 20 times as fast.
find /usr/share/systemtap/tapset -name '*.stpm' -not -path '*/bpf/*' -not -path '*/dyninst/*' -exec cp {} macros \\;
"""
# Prints a line for each example, mode and argument, with stap's exit status; then the examples.
EXAMPLES = (
    r"""
cd "$(mktemp -d /tmp/tapvirt-check.XXXXXX)"
apt="-o Dir::State::lists=$PWD/lists -o Dir::Cache=$PWD/cache"
apt="$apt -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root"
mkdir -p lists/partial cache
folder=/usr/share/systemtap/examples
if [ ! -d $folder ]; then
  apt-get $apt update >log 2>&1 || { rm -rf "$PWD"; echo offline; exit 0; }
  apt-get $apt download systemtap-doc >>log 2>&1 && dpkg -x systemtap-doc_*.deb .
  folder=$PWD$folder
fi
"""
    + STUB_TREE
    + r"""
cat >each <<'END'
for mode in "" -g; do
  for argument in "" 9 vfs; do
    many="$argument $argument $argument $argument $argument $argument $argument $argument $argument"
    SYSTEMTAP_TAPSET=macros stap -p1 $mode -r "$TREE" "$1" $many >/dev/null 2>&1
    echo "verdict|${1#FOLDER/}|$mode|$argument|$?"
  done
done
END
cat >whole <<'END'
stap -p1 -g -r "$TREE" "$1" 9 9 9 9 9 9 9 9 9 >/dev/null 2>&1
echo "whole|${1#FOLDER/}|-g|9|$?"
END
sed -i "s,FOLDER,$folder," each whole
find "$folder" -name '*.stp' | sort >list
xargs -P2 -n1 sh each <list
# The same with the whole tapset, for some.
awk 'NR % 20 == 1' list | xargs -P2 -n1 sh whole
echo "examples|$(tar -C "$folder" -cz . | base64 -w0)"
rm -rf "$PWD"
"""
)
PARSE = "env SYSTEMTAP_TAPSET=macros stap -p1"
OWN = (
    STUB_TREE
    + r"""
for file in *.stp; do
  COMMAND -r "$TREE" "$file" >/dev/null 2>&1 </dev/null
  echo "$file|$?"
done
"""
)


@pytest.fixture(scope="module")
def examples(lab):
    """The examples of SystemTap's package, and the verdicts of stap on them."""
    done = lab.run("builder", "sh", stdin=EXAMPLES, timeout=400)
    if done.stdout.strip() == "offline":
        pytest.skip("the builder has no examples and does not reach its package mirror")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert rows and rows[-1][0] == "examples", done.stdout[-500:] + done.stderr[-500:]
    packed = gzip.decompress(base64.b64decode(rows[-1][1]))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        texts = {
            member.name[2:]: archive.extractfile(member).read().decode("utf-8", "surrogateescape")
            for member in archive.getmembers()
            if member.isfile() and member.name.endswith(".stp")
        }
    return texts, [tuple(row) for row in rows[:-1]]


def test_every_example_has_the_verdict_of_stap(examples):
    texts, verdicts = examples
    assert len(texts) >= 201
    by_stap = {(path, mode, argument): rc == "0" for kind, path, mode, argument, rc in verdicts if kind == "verdict"}
    assert len(by_stap) == len(texts) * 6
    differ = []
    for (path, mode, argument), accepted in by_stap.items():
        message = refusal(fill_arguments(texts[path], argument), mode == "-g")
        if (message == "") != accepted:
            differ.append((path, mode, argument, accepted, message))
    assert not differ, json.dumps(differ, indent=1)
    # The tapset itself makes no difference to the parser.
    whole = {(path, mode, argument): rc == "0" for kind, path, mode, argument, rc in verdicts if kind == "whole"}
    assert whole and whole == {key: by_stap[key] for key in whole}
    # Accepted with no kind of argument: one that takes a name and a number, and a template with dots in place of code.
    never = {path for path in texts if not any(by_stap[path, "-g", argument] for argument in ARGUMENTS)}
    assert never == {"general/watchdog.stp", "security-band-aids/security-bandaid-template.stp"}


def test_whole_check_accepts_every_example_that_stap_accepts(examples):
    texts, verdicts = examples
    wrong = {}
    for kind, path, mode, argument, rc in verdicts:
        if (kind, mode, rc) == ("verdict", "-g", "0"):
            try:
                prepare("src", "example", fill_arguments(texts[path], argument), {}, guru=True)
            except TapvirtError as error:
                wrong[path] = error.message
    # Files with functions only are used by other scripts; hosts do not trace places in programs yet.
    expected = ("has no probe", "are not supported yet")
    assert {path: text for path, text in wrong.items() if not any(part in text for part in expected)} == {}


def own_verdicts(lab, scripts, command):
    """Return stap's exit status for each of some scripts."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for number, text in enumerate(scripts):
            data = (text.rstrip("\n") + "\n").encode()
            member = tarfile.TarInfo(f"{number:03}.stp")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    text = base64.b64encode(packed.getvalue()).decode()
    script = 'cd "$(mktemp -d /tmp/tapvirt-check.XXXXXX)"\necho {0} | base64 -d | tar -xz\n{1}rm -rf "$PWD"\n'
    done = lab.run("builder", "sh", stdin=script.format(text, OWN.replace("COMMAND", command)), timeout=300)
    status = [int(line.split("|")[1]) for line in done.stdout.splitlines()]
    assert len(status) == len(scripts), done.stdout + done.stderr
    return status


def test_both_parsers_accept_every_construct(lab):
    scripts = (FIXTURES / "constructs.txt").read_text(encoding="utf-8").split("\n====\n")[1:]
    status = own_verdicts(lab, scripts, f"{PARSE} -g")
    assert [text for text, rc in zip(scripts, status, strict=True) if rc] == []
    assert [refusal(text, guru=True) for text in scripts] == [""] * len(scripts)


def test_recorded_verdicts_are_those_of_the_builder(lab):
    rows = read_verdicts()
    status = own_verdicts(lab, [row.text for row in rows], f"{PARSE} -g")
    assert [row.text for row, rc in zip(rows, status, strict=True) if (rc == 0) != row.guru] == []


def test_both_parsers_agree_on_damaged_scripts(lab):
    texts = mutants(500)
    status = own_verdicts(lab, texts, f"{PARSE} -g")
    found = [differs(text, True, rc == 0) for text, rc in zip(texts, status, strict=True)]
    assert [problem for problem in found if problem is not None] == []


def test_both_parsers_refuse_every_seeded_fault(lab):
    sections = (FIXTURES / "faults.txt").read_text(encoding="utf-8").split("\n==== ")[1:]
    heads = [section.partition("\n")[0].split(" ", 3) for section in sections]
    texts = [section.partition("\n")[2] for section in sections]
    assert len(texts) >= 30
    assert all(whole_refusal(text, guru=False) for text in texts)
    first = own_verdicts(lab, texts, PARSE)
    assert [rc != 0 for rc in first] == [head[2] == "1" for head in heads]
    later = [(head, text) for head, text in zip(heads, texts, strict=True) if head[2] != "1"]
    second = own_verdicts(lab, [text for _head, text in later], "stap -p2")
    assert [rc != 0 for rc in second] == [head[2] == "2" for head, _text in later]
