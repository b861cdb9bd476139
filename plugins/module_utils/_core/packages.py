# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of packages by distribution: the one table behind every remedy that names a package.

Private to the collection. Names for a kernel follow stap-prep of SystemTap and the distributions' kernel packages.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .root import Root

_OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
# The words of ID and ID_LIKE in os-release(5) that name a family.
_FAMILIES = {
    "debian": "Debian",
    "ubuntu": "Debian",
    "rhel": "RedHat",
    "fedora": "RedHat",
    "centos": "RedHat",
    "amzn": "RedHat",
    "ol": "RedHat",
    "suse": "SUSE",
    "opensuse": "SUSE",
    "sles": "SUSE",
    "arch": "Arch",
}
#: What needs packages, by family: ``runtime`` (staprun), ``toolchain`` (stap and what it builds with), ``gcc``,
#: ``clang``, ``libvirt`` (the binding for Python).
PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "Debian": {
        "runtime": ("systemtap-runtime",),
        "toolchain": ("systemtap", "gcc", "make"),
        "gcc": ("gcc",),
        "clang": ("clang", "lld"),
        "libvirt": ("python3-libvirt",),
    },
    "RedHat": {
        "runtime": ("systemtap-runtime",),
        "toolchain": ("systemtap-devel", "gcc", "make"),
        "gcc": ("gcc",),
        "clang": ("clang", "lld"),
        "libvirt": ("python3-libvirt",),
    },
    "SUSE": {
        "runtime": ("systemtap-runtime",),
        "toolchain": ("systemtap", "gcc", "make"),
        "gcc": ("gcc",),
        "clang": ("clang", "lld"),
        "libvirt": ("python3-libvirt-python",),
    },
    "Arch": {
        "runtime": ("systemtap",),
        "toolchain": ("systemtap", "gcc", "make"),
        "gcc": ("gcc",),
        "clang": ("clang", "lld"),
        "libvirt": ("libvirt-python",),
    },
}
# What is needed, where the distribution is not known.
_NEEDS = {
    "runtime": "SystemTap's runtime (staprun)",
    "toolchain": "SystemTap's translator (stap), gcc and make",
    "gcc": "gcc",
    "clang": "clang and lld",
    "libvirt": "libvirt's binding for Python",
    "headers": "the kernel's headers",
    "debuginfo": "the kernel's debug information",
}
# Where to look for a package that the usual repositories do not have.
_HINTS = {
    ("ubuntu", "debuginfo"): "from the ddebs archive, which needs its own sources entry and the key of the package"
    " ubuntu-dbgsym-keyring",
    ("ol", "debuginfo"): "from oss.oracle.com, whose debuginfo directory needs a repository entry of its own",
    ("RedHat", "debuginfo"): "from a debuginfo repository, which is disabled by default",
    ("SUSE", "debuginfo"): "from a debug repository, which is disabled by default",
    ("Arch", "runtime"): "from the AUR",
    ("Arch", "toolchain"): "systemtap is in the AUR",
    ("Arch", "debuginfo"): "use a debuginfod server (Arch has no package of debug information)",
}
_RED_HAT_FLAVOUR = re.compile(r"(?P<release>.*?)(?:\+(?P<flavour>[a-z0-9-]+))?\Z", re.DOTALL)
_SUSE_RELEASE = re.compile(r"(?P<version>.*)-(?P<flavour>[a-z][a-z0-9_]*)\Z", re.DOTALL)
# Amazon's first kernel of a distribution is called kernel, the later ones kernel6.12 and so on.
_AMAZON_KERNEL = re.compile(r"(?P<series>[0-9]+\.[0-9]+)\..*\.amzn2023\.")
_AMAZON_FIRST = "6.1"
# What every kernel-devel package provides, of each flavour, but those of Oracle and Amazon and old ones for realtime.
_HEADERS_CAPABILITY = "kernel-devel-uname-r"


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A host's distribution; ``None``: unknown.

    ``name`` is ID of os-release(5), ``ubuntu`` for a derivative of Ubuntu; ``family`` is a key of ``PACKAGES``.
    """

    name: str | None
    family: str | None


def read_distribution(root: Root) -> Distribution:
    """Read which distribution a host runs."""
    text = next((text for text in map(root.read_text_or, _OS_RELEASE) if text is not None), "")
    values = {key: value.strip().strip("\"'") for key, _sign, value in (row.partition("=") for row in text.split("\n"))}
    name = values.get("ID") or None
    words = [name or "", *values.get("ID_LIKE", "").split()]
    base = next((word for word in words if word in _FAMILIES), None)
    # A derivative installs the kernels of Ubuntu's archive. Linux Mint also has an edition that is based on Debian.
    if name not in _FAMILIES and (base == "ubuntu" or (base == "debian" and values.get("UBUNTU_CODENAME"))):
        name = "ubuntu"
    return Distribution(name, _FAMILIES[base] if base else None)


def packages(need: str, distribution: Distribution, release: str = "", build: str = "") -> tuple[str, ...]:
    """Return the packages that bring something, as the package manager takes them.

    Empty where the family is unknown, or has no such package. What a package provides may take the place of its name
    (``kernel-devel-uname-r = 5.14.0-427.el9.x86_64+rt``).

    :param need: a key of ``PACKAGES``, or ``headers`` or ``debuginfo`` of a kernel.
    :param build: the version and release of the kernel's packages; only SUSE's debug information needs it.
    """
    names = _names(need, distribution, release, build)
    if need == "headers" and distribution.family == "RedHat" and not _has_own_name(release):
        return (f"{_HEADERS_CAPABILITY} = {release}",)
    return names


def _names(need: str, distribution: Distribution, release: str, build: str = "") -> tuple[str, ...]:
    if need not in ("headers", "debuginfo"):
        return PACKAGES.get(distribution.family or "", {}).get(need, ())
    name = _KERNEL_PACKAGES.get(distribution.family or "")
    return name(need, distribution, release, build) if name else ()


def remedy(need: str, distribution: Distribution, release: str = "", version: str = "", build: str = "") -> str:
    """Return what to install, in words: the host's own packages, or what they hold where it is not known.

    :param version: what to say of the version, such as ``5.0 or newer``.
    """
    names = _names(need, distribution, release, build)
    hint = _HINTS.get((distribution.name or "", need)) or _HINTS.get((distribution.family or "", need))
    if not names and hint:
        return hint
    if not names:
        what = f"{_NEEDS[need]} of {release}" if release else _NEEDS[need]
        return " ".join(filter(None, ("install", what, version)))
    if need == "debuginfo" and distribution.family == "SUSE" and not build:
        # A rebuild number that uname does not print follows the version: no capability with this version is found.
        name, _sign, of_kernel = names[0].partition(" = ")
        names = (f"{name} of the version {of_kernel}.N that 'zypper search --details --match-exact {name}' lists",)
    what = "the package" if len(names) == 1 else "the packages"
    words = ("install", what, ", ".join(names), version, f"({hint})" if hint else "")
    return " ".join(filter(None, words))


def _debian(need: str, distribution: Distribution, release: str, _build: str) -> tuple[str, ...]:
    if need == "headers":
        return (f"linux-headers-{release}",)
    if distribution.name == "ubuntu":
        return (f"linux-image-unsigned-{release}-dbgsym",)
    return (f"linux-image-{release}-dbg",)


def _has_own_name(release: str) -> bool:
    """Return whether the headers of a kernel of Red Hat's family provide another name, or none."""
    return "uek" in release or ".amzn" in release or re.search(r"\.rt\d", release) is not None


def _red_hat(need: str, _distribution: Distribution, release: str, _build: str) -> tuple[str, ...]:
    """Name a kernel's package: ``5.14.0-427.el9.x86_64+rt`` is kernel-rt of 5.14.0-427.el9.x86_64.

    Before EL 9.3 the realtime kernel had its version in the release (``.rt7.``), Oracle's has ``uek``, Amazon's
    ``amzn2023``.
    """
    found = _RED_HAT_FLAVOUR.match(release)
    bare, flavour = (found.group("release"), found.group("flavour") or "") if found else (release, "")
    base = "-uek" if "uek" in bare else "-rt" if re.search(r"\.rt\d", bare) else ""
    amazon = _AMAZON_KERNEL.match(bare)
    if amazon and amazon.group("series") != _AMAZON_FIRST:
        base = amazon.group("series")
    kind = {"headers": "devel", "debuginfo": "debuginfo"}[need]
    return (f"kernel{base}{'-' if flavour else ''}{flavour}-{kind}-{bare}",)


def _suse(need: str, _distribution: Distribution, release: str, build: str) -> tuple[str, ...]:
    """Name a kernel's package: ``6.4.0-150600.23.25-default`` is kernel-default of 6.4.0-150600.23.25.

    The release of the package itself has one number more. The headers provide the version without it, the debug
    information does not.
    """
    found = _SUSE_RELEASE.match(release)
    version, flavour = (found.group("version"), found.group("flavour")) if found else (release, "default")
    if need == "headers":
        return (f"kernel-{flavour}-devel = {version}",)
    return (f"kernel-{flavour}-debuginfo = {build or version}",)


def _arch(need: str, _distribution: Distribution, release: str, _build: str) -> tuple[str, ...]:
    """Name the headers of the kernel package: ``6.12.1-arch1-1`` is linux, ``6.12.1-1-lts`` linux-lts."""
    if need == "debuginfo":
        return ()
    flavour = re.search(r"-(lts|zen|hardened|rt|rt-lts)\Z", release)
    return (f"linux-{flavour.group(1)}-headers" if flavour else "linux-headers",)


_KERNEL_PACKAGES: dict[str, t.Callable[[str, Distribution, str, str], tuple[str, ...]]] = {
    "Debian": _debian,
    "RedHat": _red_hat,
    "SUSE": _suse,
    "Arch": _arch,
}
