# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of the families RedHat and SUSE with real dnf and zypper, and repositories of small RPMs.

Such a host is the root of this machine in a mount namespace, below an overlay in memory: what is installed there is
gone at the end. It has the os-release of its distribution, its package manager, an empty RPM database, and none of the
machine's compilers and Debian's package managers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t

import pytest
import yaml

_PROGRAMS = ("dnf", "zypper", "rpmbuild", "createrepo_c", "unshare", "nsenter")
needs_rpm = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(name) is None for name in _PROGRAMS),
    reason=f"root and these programs are needed: {', '.join(_PROGRAMS)}",
)
_SPEC = """%global debug_package %{{nil}}
%global __os_install_post %{{nil}}
Name: {name}
Version: {version}
Release: {release}
Summary: A small package for a test
License: GPL-3.0-or-later
AutoReqProv: no
{provides}
%description
A small package for a test.
%install
cp -a {files}/. %{{buildroot}}/
%files
/*
"""
# A tmpfs holds what the host writes; its other parts are those of the machine. The host ends with its standard input.
_HOST = """
mount --make-rprivate /
layers=$1/layers
mkdir "$layers"
mount -t tmpfs -o mode=755 host "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" host "$layers/root"
cd "$layers/root"
for name in proc sys dev; do mount --rbind /$name $name; done
mkdir -p ".$1"
mount --bind "$1" ".$1"
rm -rf etc/os-release etc/debian_version etc/redhat-release var/lib/rpm var/cache/dnf var/cache/zypp \
    usr/bin/apt* usr/bin/aptitude usr/bin/dpkg* usr/bin/gcc* usr/bin/clang* usr/bin/make usr/bin/stap* \
    usr/lib/debug usr/lib/modules usr/src/kernels etc/yum.repos.d etc/zypp/repos.d
shift
rm -f "$@"
echo ready
cat > /dev/null
"""
_PYTHON = """#!/bin/sh
exec nsenter --target {pid} --mount --root={root} --wd={root} /usr/bin/python3 "$@"
"""
_RECAP = re.compile(r"changed=(\d+)")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What makes the overlay a host of a family: os-release, the place of repositories, programs of other families."""

    os_release: str
    repositories: str
    removed: tuple[str, ...]
    redhat_release: str = ""


EL9 = Distribution(
    'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n',
    "etc/yum.repos.d",
    ("usr/bin/zypper",),
    "Rocky Linux release 9.4 (Blue Onyx)\n",
)
SUSE = Distribution(
    'NAME="openSUSE Leap"\nVERSION="15.6"\nID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\n',
    "etc/zypp/repos.d",
    ("usr/bin/dnf", "usr/bin/dnf-3"),
)


@dataclasses.dataclass(frozen=True)
class Package:
    """A small RPM: its files (path -> text, or ``-> target`` of a link; a text with ``#!`` is a program)."""

    name: str
    version: str
    release: str
    files: t.Mapping[str, str]
    provides: tuple[str, ...] = ()


def make_repository(top: pathlib.Path, name: str, packages: t.Sequence[Package], *options: str) -> pathlib.Path:
    """Build packages, and the metadata of a repository that contains them; ``options`` are those of createrepo_c."""
    repository = top / name
    repository.mkdir()
    for package in packages:
        files = top / "files" / package.name
        for place, text in package.files.items():
            path = files / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                path.symlink_to(text[3:])
            else:
                path.write_text(text, encoding="utf-8")
                path.chmod(0o755 if text.startswith("#!") else 0o644)
        spec = top / f"{package.name}.spec"
        provides = "\n".join(f"Provides: {provide}" for provide in package.provides)
        fields = {key: getattr(package, key) for key in ("name", "version", "release")}
        spec.write_text(_SPEC.format(files=files, **{**fields, "provides": provides}), encoding="utf-8")
        defined = {"_topdir": top / "rpmbuild", "_rpmdir": repository, "_dbpath": top / "rpmdb"}
        options_of_build = [part for key, value in defined.items() for part in ("--define", f"{key} {value}")]
        _run(["rpmbuild", "-bb", "--quiet", "--target", "x86_64", *options_of_build, str(spec)])
    _run(["createrepo_c", "--quiet", *options, str(repository)])
    return repository


def _run(argv: t.Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr}"


class RpmHost:
    """A running host: commands in it, and roles applied to it."""

    def __init__(self, top: pathlib.Path, pid: int) -> None:
        self._top = top
        self.root = pathlib.Path(f"/proc/{pid}/root{top}/layers/root")
        self._python = top / "python"
        self._python.write_text(_PYTHON.format(pid=pid, root=self.root), encoding="utf-8")
        self._python.chmod(0o755)

    def write(self, name: str, text: str) -> None:
        """Write a file of the host; a text with ``#!`` is a program."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if text.startswith("#!") else 0o644)

    def installed(self) -> list[str]:
        """Return the names of the installed packages, as the host's rpm prints them."""
        code = "import subprocess; subprocess.run(['rpm', '-qa', '--queryformat', '%{NAME}\\n'], check=True)"
        done = subprocess.run([self._python, "-c", code], capture_output=True, text=True, check=True)
        return sorted(done.stdout.split())

    def apply(self, role: str, *options: str, **variables: t.Any) -> subprocess.CompletedProcess[str]:
        """Apply a role of the collection to the host."""
        play = {
            "hosts": "host",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.import_role": {"name": f"tapvirt.host.{role}"}}],
        }
        (self._top / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
        connection = {"ansible_connection": "local", "ansible_python_interpreter": str(self._python)}
        inventory = {"all": {"hosts": {"host": {**connection, **variables}}}}
        (self._top / "inventory.yml").write_text(json.dumps(inventory), encoding="utf-8")
        playbook = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "HOME": str(self._top / "home")}
        env.update(ANSIBLE_REMOTE_TMP=str(self._top / "home/tmp"), ANSIBLE_LOCAL_TEMP=str(self._top / "home/local"))
        return subprocess.run(
            [playbook, "-i", str(self._top / "inventory.yml"), str(self._top / "play.yml"), *options],
            env=env,
            cwd=self._top,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def converge(self, role: str, **variables: t.Any) -> None:
        """Apply a role twice: the first time changes something, the second nothing."""
        for changed in (True, False):
            done = self.apply(role, **variables)
            assert done.returncode == 0, done.stdout + done.stderr
            found = _RECAP.search(done.stdout.rpartition("PLAY RECAP")[2])
            assert found is not None and (int(found.group(1)) > 0) == changed, done.stdout


@contextlib.contextmanager
def rpm_host(top: pathlib.Path, distribution: Distribution, repositories: t.Mapping[str, bool]) -> t.Iterator[RpmHost]:
    """Run a host of a distribution.

    :param repositories: directories of ``make_repository`` in ``top``, and whether each is enabled.
    """
    argv = ["unshare", "--mount", "--fork", "--kill-child", "sh", "-ec", _HOST, "sh", str(top), *distribution.removed]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            (child,) = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
            host = RpmHost(top, int(child))
            host.write("etc/os-release", distribution.os_release)
            # Debian's rpm keeps a database for each HOME.
            host.write("etc/rpm/macros", "%_dbpath /var/lib/rpm\n")
            if distribution.redhat_release:
                host.write("etc/redhat-release", distribution.redhat_release)
            rows = (
                f"[{name}]\nname={name}\nbaseurl=file://{top / name}\ngpgcheck=0\nenabled={int(enabled)}\n"
                for name, enabled in repositories.items()
            )
            host.write(f"{distribution.repositories}/test.repo", "".join(rows))
            yield host
        finally:
            process.stdin.close()
