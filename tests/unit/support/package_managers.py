# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for dnf, zypper, rpm and Ansible's module of a package manager, over the directory HOST_FOLDER.

``repository/NAME`` has the files of a package, which go into ``tree``; ``debug/NAME`` those of a repository of debug
information, which is disabled. ``installed/NAME`` is an installed package; ``commands`` has each command with its
environment. ``locked`` makes zypper find its lock held, ``hanging`` makes dnf wait.
"""

from __future__ import annotations

import json
import pathlib
import typing as t

_COMMAND = """#!{python}
import json, os, pathlib, shutil, sys, time

top = pathlib.Path(os.environ["HOST_FOLDER"])
program, argv = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
names = [path.name for path in (top / "installed").iterdir()] if (top / "installed").exists() else []
environment = {{key: os.environ.get(key) for key in ("LC_ALL", "ZYPP_LOCK_TIMEOUT")}}
with (top / "commands").open("a") as stream:
    stream.write(json.dumps([program, argv, environment]) + "\\n")

if program == "rpm":
    if "--file" in argv:
        print("6.4.0-150600.23.25.1")
        sys.exit(0)
    asked = [word for word in argv if not word.startswith("-")]
    provided = "--whatprovides" in argv
    absent = [name for name in asked if name not in names and not (provided and any(
        installed.split(" ")[0] == name for installed in names))]
    for name in absent:
        print(f"no package provides {{name}}" if provided else f"package {{name}} is not installed")
    formats = [word.partition("=")[2] for word in argv if word.startswith("--queryformat=")]
    print("".join(formats).replace("\\\\n", "\\n") * (len(asked) - len(absent)), end="")
    sys.exit(len(absent))
if (top / "hanging").exists():
    print("Waiting for process with pid 4711 to finish.", flush=True)
    time.sleep(60)
if (top / "locked").exists():
    print("System management is locked by the application with pid 4711 (zypper).")
    sys.exit(7)
if "repos" in argv:
    for name, enabled in (("oss", 1), ("SLE-Debuginfo-Pool", 0), ("src", 0)):
        print(f'<repo alias="{{name}}" enabled="{{enabled}}">')
    sys.exit(0)
words = argv[argv.index("install") + 1 :]
asked = [word for word in words if not word.startswith("-")]
debug = "--plus-content" in argv or any(word.startswith("--setopt=") and word.endswith(".enabled=1") for word in argv)
places = [top / "repository", *([top / "debug"] if debug else [])]
absent = [name for name in asked if not any((place / name).exists() for place in places)]
if absent and program == "zypper":
    print("".join(f"No provider of '{{name}}' found.\\n" for name in absent))
    sys.exit(104)
if absent:
    print("".join(f"No match for argument: {{name}}\\n" for name in absent) + "Unable to find a match", file=sys.stderr)
    sys.exit(1)
wanted = [name for name in asked if name not in names]
for name in wanted:
    (top / "installed").mkdir(exist_ok=True)
    (top / "installed" / name).touch()
    for place in places:
        if (place / name).exists():
            shutil.copytree(place / name, top / "tree", dirs_exist_ok=True)
print("Complete!" if wanted else "Nothing to do.")
"""
# What a package brings is in repository/PACKAGE; packages that it does not have bring nothing.
MODULE = """#!/usr/bin/python
import os, pathlib, shutil
from ansible.module_utils.basic import AnsibleModule

def main():
    module = AnsibleModule({"name": {"type": "list", "elements": "str"}, "state": {}}, supports_check_mode=True)
    top = pathlib.Path(os.environ["HOST_FOLDER"])
    if (top / "refuses").exists():
        module.fail_json(msg=f"No package matching '{module.params['name'][0]}' is available")
    changed = False
    for name in module.params["name"]:
        mark = top / "installed" / name
        if not mark.exists():
            changed = True
            if not module.check_mode:
                mark.parent.mkdir(exist_ok=True)
                mark.touch()
                if (top / "repository" / name).exists():
                    shutil.copytree(top / "repository" / name, top / "tree", dirs_exist_ok=True)
    module.exit_json(changed=changed)

main()
"""


def write(path: pathlib.Path, text: str = "", mode: int = 0o644) -> None:
    """Write a file with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def put_managers(top: pathlib.Path, python: str) -> None:
    """Put the commands into ``bin`` and the module into ``library`` of a playbook's directory."""
    for program in ("dnf", "zypper", "rpm"):
        write(top / "bin" / program, _COMMAND.format(python=python), 0o755)
    write(top / "library" / "ownpm.py", MODULE)


def commands(host: pathlib.Path, program: str) -> list[tuple[list[str], dict[str, t.Any]]]:
    """Return each command of a program on a host: its words and its environment."""
    path = host / "commands"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [(argv, environment) for name, argv, environment in rows if name == program]
