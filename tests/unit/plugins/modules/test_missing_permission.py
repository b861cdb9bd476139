# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules run by a user who may not do what they are asked to: one sentence names the path and what the task needs."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import typing as t

import ansible
import ansible.release
import pytest
import yaml

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")

NOBODY = 65534
HERE = pathlib.Path(__file__).resolve().parents[4] / "plugins"
# Python and Ansible may lie in a home directory that is closed to others: what is imported late is imported before.
CODE = """
import difflib, glob, importlib, os, tempfile, traceback
import ansible.module_utils.basic
import ansible_collections.tapvirt.host.plugins.module_utils as utils
module = importlib.import_module("ansible_collections.tapvirt.host.plugins.modules." + os.environ["MODULE"])
for area in ("_core", "_kernel", "_systemtap", "_libvirt"):
    for name in os.listdir(os.path.join(list(utils.__path__)[0], area)):
        if name.endswith(".py"):
            importlib.import_module("{}.{}.{}".format(utils.__name__, area, name[:-3]))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.chdir("/")
module.main()
"""
ROOT = "the task needs root: run it with become: true"
PATH = "the task needs a user with permission for that path, or root: run it with become: true"
SCRIPT = "probe begin { exit() }"


@pytest.fixture(scope="module")
def collections() -> t.Iterator[str]:
    """A directory for PYTHONPATH with the code, which every user can read."""
    top = pathlib.Path(tempfile.mkdtemp(prefix="tapvirt-"))
    target = top / "ansible_collections" / "tapvirt" / "host" / "plugins"
    for name in ("module_utils", "modules"):
        shutil.copytree(HERE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Ansible imports its encoders when it needs them.
    (top / "ansible").mkdir()
    (top / "ansible" / "__init__.py").touch()
    shutil.copy(str(ansible.release.__file__), top / "ansible")
    shutil.copytree(pathlib.Path(str(ansible.__file__)).parent / "module_utils", top / "ansible" / "module_utils")
    subprocess.run(["chmod", "-R", "a+rX", top], check=True)
    yield str(top)
    shutil.rmtree(top)


@pytest.fixture
def closed() -> t.Iterator[pathlib.Path]:
    """A directory of root's alone, below one that every user can enter; short enough for libvirt."""
    top = pathlib.Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    top.chmod(0o755)
    (top / "c").mkdir(mode=0o700)
    yield top / "c"
    shutil.rmtree(top)


@pytest.fixture
def run_as_nobody(collections) -> t.Callable[..., dict[str, t.Any]]:
    """Run a module as nobody."""

    def run(module: str, args: t.Mapping[str, t.Any], check: bool = False) -> dict[str, t.Any]:
        text = json.dumps({"ANSIBLE_MODULE_ARGS": {**args, "_ansible_check_mode": check}})
        paths = os.pathsep.join([collections, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "MODULE": module, "PYTHONPATH": paths, "HOME": "/nonexistent"}
        for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
            environment.pop(name, None)  # what the first run compiles, the others use
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            input=text,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
        assert done.stdout, done.stderr
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))

    return run


def refused(path: t.Any, needs: str) -> str:
    return f"The user with uid {NOBODY} was refused {path} (Permission denied); {needs}."


@pytest.mark.parametrize(("name", "check"), [("x.stp", False), ("new/x.stp", True)])
def test_a_script_needs_permission_for_its_directory(name, check, run_as_nobody, closed):
    result = run_as_nobody("stap_script", {"src": "/x.stp", "_content": SCRIPT, "dest": str(closed / name)}, check)
    assert result["msg"] == refused(closed / name, PATH)


def test_a_store_that_cannot_be_read_is_not_an_empty_one(run_as_nobody, closed):
    assert run_as_nobody("stap_store", {"store": str(closed), "older_than": "1s"})["msg"] == refused(closed, PATH)


@pytest.mark.parametrize(
    ("module", "name"), [("libvirt_domain_info", ""), ("libvirt_domain", "/new"), ("libvirt_snapshot", "")]
)
def test_an_embedded_driver_needs_permission_for_its_root(module, name, run_as_nobody, closed):
    pytest.importorskip("libvirt")
    args: dict[str, t.Any] = {"uri": f"qemu:///embed?root={closed}{name}"}
    if module == "libvirt_domain":
        args["domains"] = [{"name": "one", "state": "absent"}]
    elif module == "libvirt_snapshot":
        args["snapshots"] = [{"domain": "one", "name": "two", "state": "absent"}]
    assert run_as_nobody(module, args)["msg"] == refused(f"{closed}{name}/etc/qemu.conf", PATH)


def test_parameters_need_root(run_as_nobody):
    path = pathlib.Path("/sys/module/kernel/parameters/panic")
    value = path.read_text(encoding="ascii")
    entry = {"module": "kernel", "name": "panic", "value": int(value) + 1}
    result = run_as_nobody("kernel_module_param", {"params": [entry]})
    assert re.fullmatch(re.escape(refused("@", ROOT)).replace("@", r"/var/lib/\S*"), result["msg"])
    assert path.read_text(encoding="ascii") == value
    # Whoever may read the values may ask what would change.
    assert run_as_nobody("kernel_module_param", {"params": [entry]}, check=True)["changed"] is True


RESTORE = """
import os, sys
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters import run as parameter_run
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters import model as parameters
entry = {"module": "kernel", "name": "panic", "value": 5, "runtime": True, "persist": "none", "read_back": "auto"}
os.setgroups([])
os.setuid(65534)
for state in ("present", "restored"):
    wanted = parameters.wanted_list([entry], state)
    try:
        print(bool(parameter_run.Parameters(Root(sys.argv[1]), "x86_64", wanted, state).converge(True)[0]))
    except PermissionError as error:
        print(error.filename)
"""


def test_what_a_parameter_was_is_not_guessed_where_the_journal_cannot_be_read(closed, collections):
    top = closed.parent
    (top / "sys/module/kernel/parameters").mkdir(parents=True)
    (top / "sys/module/kernel/parameters/panic").write_text("7\n")
    (top / "var/lib").mkdir(parents=True)
    closed.rename(top / "var/lib/tapvirt")
    subprocess.run(["chmod", "-R", "a+rX", top / "sys"], check=True)
    argv = [sys.executable, "-c", RESTORE, str(top)]
    done = subprocess.run(argv, env={"PYTHONPATH": collections}, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.splitlines() == ["True", str(top / "var/lib/tapvirt/kernel_module_param.json")], done.stderr


TRACE = """
import os
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.trace import start as run
os.setgroups([])
os.setuid(65534)
try:
    run.check_host(Root(), None)
except run.Refused as error:
    print(error.message)
"""


def test_a_trace_needs_root_in_check_mode_too(collections):
    argv = [sys.executable, "-c", TRACE]
    done = subprocess.run(argv, env={"PYTHONPATH": collections}, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.endswith(f": the user with uid 65534 cannot load modules; {ROOT}.\n"), done.stderr


@pytest.mark.parametrize("role", ["trace_builder", "trace_host", "virt_host"])
def test_a_role_that_installs_packages_refuses_a_user_who_is_not_root_before_all_else(role):
    text = (HERE.parent / "roles" / role / "tasks" / "main.yml").read_text(encoding="utf-8")
    look, refuse, *_others = yaml.safe_load(text)
    assert (look.get("ansible.builtin.raw") or look["ansible.builtin.command"]["argv"]) in ("id -u", ["id", "-u"])
    assert look["check_mode"] is False
    assert refuse["ansible.builtin.assert"]["that"].replace(" | trim", "") == look["register"] + ".stdout == '0'"
    assert "needs root" in refuse["ansible.builtin.assert"]["fail_msg"]
    assert "become: true" in refuse["ansible.builtin.assert"]["fail_msg"]
