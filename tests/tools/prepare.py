# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The prepared environment: system packages, a virtual environment, a copy of the tree where Ansible looks for it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

from .steps import CACHE, KEY, ROOT, DevError, Steps, lock, run

BASE_PACKAGES = [
    "ca-certificates",
    "debuginfod",
    "gcc",
    "git",
    "libc6-dev",
    "libvirt-dev",
    "openssh-client",
    "pkg-config",
]
BASE_PACKAGES += ["python3-dev", "python3-venv"]
VIRT_PACKAGES = [
    "libvirt-clients",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "ovmf",
    "qemu-guest-agent",
    "qemu-system-x86",
    "qemu-utils",
    "swtpm",
    "swtpm-tools",
]
# Opens pages in tests. Not every release of Debian and Ubuntu has it.
BROWSER_PACKAGES = ["chromium-headless-shell"]
# Package managers of other families, on which tests run the roles.
RPM_PACKAGES = ["createrepo-c", "dnf", "rpm", "zypper"]
NAMESPACE_PATH = Path("ansible_collections/tapvirt/host")
# Of the controller, best first: tests/requirements.txt says which ansible-core goes with which.
PYTHONS = ["3.14", "3.13", "3.12", "3.11"]
# Of managed hosts, the oldest first.
TARGET_PYTHONS = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"]
# Of those versions of ansible-core that PYTHONS do not get: tests/requirements-sanity.txt says which goes with which.
SANITY_PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def missing_packages(packages: t.Iterable[str], status: str) -> list[str]:
    """Return which packages dpkg-query's listing does not show as installed."""
    installed = {line.split()[0] for line in status.splitlines() if line.endswith(" ii")}
    return sorted(set(packages) - installed)


def apt_install(steps: Steps, packages: list[str]) -> None:
    """Install packages without a question, and without starting the services that come with some."""
    policy = Path("/usr/sbin/policy-rc.d")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
        policy.chmod(0o755)
    try:
        if any(Path("/var/lib/apt/lists").glob("*_Packages*")):
            with contextlib.suppress(DevError):  # package lists may be out of date: once more with new ones
                run(steps, "apt-install", install, env, Path("/"))
                return
        run(steps, "apt-update", ["apt-get", "update", "-q"], env, Path("/"))
        run(steps, "apt-install", install, env, Path("/"))
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def ensure_packages(steps: Steps, packages: list[str]) -> None:
    """Install the system's packages where that can be done, else say exactly which they are and go on."""
    if not shutil.which("apt-get"):
        absent = [
            name for name in ("gcc", "git", "pkg-config", "qemu-system-x86_64", "virsh") if not shutil.which(name)
        ]
        if absent:
            print(f"Not found: {', '.join(absent)}. This is not Debian or Ubuntu, where it would be in these packages:")
            print("  " + " ".join(packages))
        return
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *packages]
    status = subprocess.run(query, capture_output=True, text=True, check=False).stdout.replace(" ii \n", " ii\n")
    absent = missing_packages(packages, status)
    if not absent:
        return
    if os.geteuid() != 0:
        print("These packages are not installed; going on without them. To install them:")
        print(f"  sudo apt-get install --no-install-recommends {' '.join(absent)}")
        return
    with steps.step(f"install {len(absent)} system packages: {' '.join(absent)}", planned=False):
        apt_install(steps, absent)


def available(packages: t.Iterable[str]) -> list[str]:
    """Return those packages that this system could install."""
    return [name for name in packages if succeeds("apt-cache", "show", name)]


def real_path() -> list[str]:
    """Return PATH with real interpreters' folders first, without version managers' shims, which may run nothing."""
    folders = [folder for folder in os.environ.get("PATH", "/usr/bin:/bin").split(os.pathsep) if "/shims" not in folder]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    versions = sorted(pyenv.glob("versions/3.*/bin"), reverse=True)
    folders += ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return list(dict.fromkeys([*map(str, versions), *folders]))


def succeeds(*argv: str) -> bool:
    """Return whether a command exists and exits with 0."""
    return shutil.which(argv[0]) is not None and subprocess.run(argv, capture_output=True, check=False).returncode == 0


def find_python(versions: t.Sequence[str]) -> tuple[str, Path] | None:
    """Return (version, path) of the first of these Python versions that is there and can make a virtual environment."""
    for version in versions:
        found = shutil.which(f"python{version}", path=os.pathsep.join(real_path()))
        if found and succeeds(found, "-c", "import ensurepip, venv"):
            return version, Path(found)
    return None


def make_venv(steps: Steps, name: str, python: Path, requirements: Path, optional: t.Sequence[str] = ()) -> Path:
    """Return a virtual environment with these requirements, made now or found in the cache.

    A package of ``optional`` that cannot be installed is said and left out.
    """
    constraints = ROOT / "tests" / "constraints.txt"
    parts = [str(python.resolve()), *optional, requirements.read_text("utf-8"), constraints.read_text("utf-8")]
    folder = CACHE / "venv" / f"{name}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:12]}"
    with lock(f"venv-{folder.name}"):
        if (folder / "complete").exists():
            return folder
        with steps.step(f"make the Python environment '{name}' ({python.name})", planned=False):
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
            pip += ["-c", str(constraints)]
            run(steps, f"venv-{name}", [python, "-m", "venv", "--clear", folder])
            run(steps, f"pip-{name}", [*pip, "-r", requirements])
            for package in optional:
                try:
                    run(steps, f"pip-{name}-{package}", [*pip, package])
                except DevError as error:
                    print(f"{error}\nGoing on without {package}: tests that need it are skipped.")
            (folder / "complete").touch()
    return folder


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DevError(f"git {words[0]} failed in {ROOT}: {done.stderr.strip()}")
    return done.stdout


def tree_files() -> list[str]:
    """Return the files of the tree as git lists them: tracked, and new ones that are not ignored."""
    names = _git("ls-files", "-z", "-co", "--exclude-standard").split("\0")
    return [name for name in sorted(set(names)) if name and (ROOT / name).is_file()]


@contextlib.contextmanager
def git_in(copy: Path) -> t.Iterator[None]:
    """Let git take a copy of the tree for the tree, as it takes a linked work tree (gitrepository-layout(5)).

    Variables such as GIT_DIR would do the same to every other folder in which a tool calls git.
    """
    link = copy / ".git"
    link.write_text(f"gitdir: {_git('rev-parse', '--absolute-git-dir').strip()}\n", "utf-8")
    try:
        yield
    finally:
        link.unlink(missing_ok=True)


def copy_tree(use: str) -> Path:
    """Bring a copy of the tree to a path that ends as Ansible wants it, and return that path.

    Ansible finds a collection only in .../ansible_collections/NAMESPACE/NAME, and ansible-test walks that folder
    where there is no git: so nothing else may be in it but ansible-test's own output.
    """
    copy = CACHE / "work" / f"{KEY}-{use}" / NAMESPACE_PATH
    names = tree_files()
    with lock(f"tree-{KEY}-{use}"):
        for name in names:
            source, target = ROOT / name, copy / name
            new, old = source.stat(), target.stat() if target.exists() else None
            if not old or (new.st_size, new.st_mtime_ns, new.st_mode) != (old.st_size, old.st_mtime_ns, old.st_mode):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        wanted = {copy / name for name in names}
        for path in sorted(copy.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path not in wanted and copy / "tests" / "output" not in path.parents:
                path.unlink(missing_ok=True)
    return copy


@dataclasses.dataclass(frozen=True)
class Place:
    """The prepared environment: a virtual environment, the copy of the tree, and the variables for both."""

    venv: Path
    tree: Path
    python: str
    env: dict[str, str]


def prepare(steps: Steps, use: str, packages: list[str]) -> Place:
    """Bring everything there that the commands need; quick when it is there already."""
    ensure_packages(steps, packages)
    found = find_python(PYTHONS)
    if not found:
        raise DevError(f"Needs one of Python {', '.join(PYTHONS)} with its venv module; none was found on PATH.")
    version, python = found
    headers = succeeds("pkg-config", "--exists", "libvirt")
    venv = make_venv(steps, "main", python, ROOT / "tests" / "requirements.txt", ["libvirt-python"] if headers else [])
    if not headers:
        print("No libvirt headers (libvirt-dev, pkg-config): libvirt modules cannot run on this machine.")
    tree = copy_tree(use)
    env = os.environ | {
        "PATH": os.pathsep.join([str(venv / "bin"), *real_path()]),
        "VIRTUAL_ENV": str(venv),
        "PYTHONPATH": str(tree.parents[2]),
        "PYTHONPYCACHEPREFIX": str(CACHE / "pycache"),
        "ANSIBLE_COLLECTIONS_PATH": str(tree.parents[2]),
        "ANSIBLE_HOME": str(CACHE / "ansible"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(CACHE / "hypothesis"),
        # Kept results of packages without __init__.py are wrong once a file has moved or another tree was checked.
        "MYPY_CACHE_DIR": os.devnull,
        "RUFF_CACHE_DIR": str(CACHE / "ruff"),
    }
    env.pop("PYTHONHOME", None)
    if "utf" not in (env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or "").lower():
        env["LC_ALL"] = "C.UTF-8"
    return Place(venv, tree, version, env)
