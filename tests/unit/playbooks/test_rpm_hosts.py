# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles on hosts of the families RedHat and SUSE, with real dnf, real zypper and small packages."""

from __future__ import annotations

import pathlib

import pytest
import yaml
from ansible_collections.tapvirt.host.tests.unit.support.rpm_host import (
    EL9,
    SUSE,
    Distribution,
    Package,
    make_repository,
    needs_rpm,
    rpm_host,
)

pytestmark = needs_rpm
ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"
BOTH = pytest.mark.parametrize(
    ("distribution", "family"), [pytest.param(EL9, "RedHat", id="EL 9"), pytest.param(SUSE, "SUSE", id="SUSE")]
)
RUNTIME = Package("systemtap-runtime", "5.2", "1", {"usr/bin/staprun": "#!/bin/sh\n"})
STAP = """#!/bin/sh
echo 'Systemtap translator/driver (version 5.2/0.191, rpm 5.2-1)'
echo 'tested kernel versions: 3.10 ... 6.12'
"""
GCC = "#!/bin/sh\necho 13.3.0\n"
CONFIG = "CONFIG_GCC_VERSION=110401\n"
EL_VERSION, EL_RELEASE = "5.14.0", "427.13.1.el9_4"
EL_KERNEL = f"{EL_VERSION}-{EL_RELEASE}.x86_64"
SUSE_VERSION, SUSE_RELEASE = "6.4.0", "150600.23.25"
SUSE_KERNEL = f"{SUSE_VERSION}-{SUSE_RELEASE}-default"
SUSE_HEADERS = f"usr/src/linux-{SUSE_VERSION}-{SUSE_RELEASE}-obj/x86_64/default"
# kernel, packages of the usual repository, packages of the repository of debug information, which is disabled.
BUILDERS = {
    "RedHat": (
        EL_KERNEL,
        [
            Package("systemtap-devel", "5.2", "1", {"usr/bin/stap": STAP}),
            Package(
                "kernel-devel",
                EL_VERSION,
                EL_RELEASE,
                {f"usr/src/kernels/{EL_KERNEL}/.config": CONFIG},
                (f"kernel-devel-uname-r = {EL_KERNEL}",),
            ),
        ],
        [
            Package(
                "kernel-debuginfo",
                EL_VERSION,
                EL_RELEASE,
                {f"usr/lib/debug/lib/modules/{EL_KERNEL}/vmlinux": "debug information"},
            )
        ],
    ),
    "SUSE": (
        SUSE_KERNEL,
        [
            Package("systemtap", "5.2", "1", {"usr/bin/stap": STAP}),
            Package(
                "kernel-default-devel",
                SUSE_VERSION,
                f"{SUSE_RELEASE}.1",
                {f"{SUSE_HEADERS}/.config": CONFIG, f"lib/modules/{SUSE_KERNEL}/build": f"-> /{SUSE_HEADERS}"},
                (f"kernel-default-devel = {SUSE_VERSION}-{SUSE_RELEASE}",),
            ),
        ],
        [
            Package(
                "kernel-default-debuginfo",
                SUSE_VERSION,
                f"{SUSE_RELEASE}.1",
                {f"usr/lib/debug/boot/vmlinux-{SUSE_KERNEL}.debug": "debug information"},
            )
        ],
    ),
}
TOOLS = [Package("gcc", "13.3.0", "1", {"usr/bin/gcc": GCC}), Package("make", "4.4", "1", {"usr/bin/make": GCC})]
# What systemd_service asks of systemctl; a unit is active and enabled after it was started and enabled.
SYSTEMCTL = """#!/bin/sh
mkdir -p /var/units
unit=$2
active=inactive enabled=disabled
test ! -e "/var/units/$unit.start" || active=active
test ! -e "/var/units/$unit.enable" || enabled=enabled
case $1 in
  show) printf 'Id=%s\\nLoadState=loaded\\nActiveState=%s\\nUnitFileState=%s\\n' "$unit" $active $enabled ;;
  is-enabled) echo $enabled; test $enabled = enabled ;;
  start | enable) touch "/var/units/$unit.$1" ;;
  *) exit 1 ;;
esac
"""


@BOTH
def test_a_trace_host_gets_the_runtime_once(distribution: Distribution, family: str, tmp_path: pathlib.Path) -> None:
    make_repository(tmp_path, "base", [RUNTIME])
    with rpm_host(tmp_path, distribution, {"base": True}) as host:
        host.converge("trace_host")
        assert host.installed() == ["systemtap-runtime"], family


@pytest.mark.soak
@BOTH
def test_a_builder_gets_headers_and_debug_information_once(
    distribution: Distribution, family: str, tmp_path: pathlib.Path
) -> None:
    kernel, packages, debug = BUILDERS[family]
    make_repository(tmp_path, "base", [*packages, *TOOLS])
    make_repository(tmp_path, "base-debuginfo", debug, "--content", "debug")
    with rpm_host(tmp_path, distribution, {"base": True, "base-debuginfo": False}) as host:
        refused = host.apply("trace_builder", trace_builder_kernels=["6.0.0-1.no.such.kernel"])
        assert refused.returncode != 0 and "6.0.0-1.no.such.kernel" in refused.stdout, refused.stdout
        host.converge("trace_builder", trace_builder_kernels=[kernel])
        assert host.installed() == sorted(package.name for package in (*packages, *TOOLS, *debug))


@pytest.mark.soak
@BOTH
def test_a_virtualization_host_gets_its_packages_and_units_once(
    distribution: Distribution, family: str, tmp_path: pathlib.Path
) -> None:
    defaults = yaml.safe_load((ROLES / "virt_host/defaults/main.yml").read_text(encoding="utf-8"))
    names = defaults["virt_host_packages_by_family"][family]
    make_repository(tmp_path, "base", [Package(name, "1", "1", {f"usr/share/small/{name}": name}) for name in names])
    with rpm_host(tmp_path, distribution, {"base": True}) as host:
        host.write("usr/bin/systemctl", SYSTEMCTL)
        host.converge("virt_host")
        assert host.installed() == sorted(names)
        units = defaults["virt_host_units_by_family"]["SUSE 15" if family == "SUSE" else family]
        done = {path.name for path in (host.root / "var/units").iterdir()}
        assert done == {f"{unit}.{step}" for unit in units for step in ("start", "enable")}
