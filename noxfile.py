# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions of nox: ``nox`` runs the checks, ``nox -l`` lists them. ``./dev test lint`` runs the same ones."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

import antsibull_nox
import nox

HERE = Path(__file__).resolve().parent
# What an archive of the collection may hold, besides the two files that the build itself adds.
ARCHIVE_FILES = {
    "CHANGELOG.md",
    "CHANGELOG.rst",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "COPYING",
    "FILES.json",
    "MANIFEST.json",
    "README.md",
    "SECURITY.md",
}
LEAST_MODULES = 200
ARCHIVE_FOLDERS = {"LICENSES", "changelogs", "docs", "meta", "playbooks", "plugins", "roles"}

# As a URL: both split the variable at spaces, and the repository may lie in a folder of any name.
for variable in ("PIP_CONSTRAINT", "UV_CONSTRAINT"):
    os.environ.setdefault(variable, (HERE / "tests" / "constraints.txt").as_uri())
antsibull_nox.load_antsibull_nox_toml()


@nox.session(default=True)
def changelog(session: nox.Session) -> None:
    """Check the changelog's fragments."""
    session.install("antsibull-changelog", "ansible-core")
    session.run("antsibull-changelog", "lint")


@nox.session(default=True, name="import-linter")
def import_linter(session: nox.Session) -> None:
    """Check which modules import which, by the contracts in pyproject.toml."""
    session.install("import-linter")
    top = Path(session.create_tmp()) / "imports"
    collection = top / "ansible_collections" / "tapvirt" / "host"
    collection.parent.mkdir(parents=True, exist_ok=True)
    collection.unlink(missing_ok=True)
    collection.symlink_to(HERE)
    session.chdir(top)  # lint-imports finds packages in the current directory
    text = str(session.run("lint-imports", "--no-cache", str(HERE / "pyproject.toml"), silent=True))
    found = re.search(r"Analyzed (\d+) files, (\d+) dependencies", text)
    # The collection has no __init__.py: a graph that lost its modules would keep every contract.
    if not found or int(found[1]) <= LEAST_MODULES:
        session.error(f"lint-imports saw {found[1] if found else 'no'} modules; more than {LEAST_MODULES} exist.")
    session.log(found[0])


def unexpected(names: list[str]) -> list[str]:
    """Return what does not belong into an archive: other top-level names, and files that tools leave behind."""
    found = []
    for name in names:
        top, slash, _rest = name.partition("/")
        belongs = top in ARCHIVE_FOLDERS if slash else top in ARCHIVE_FILES
        if not belongs or name.endswith((".pyc", ".orig", ".rej", "~")) or "__pycache__" in name:
            found.append(name)
    return found


@nox.session(default=True)
def archive(session: nox.Session) -> None:
    """Build the collection's archive in the tree that this file is in, and look at what is in it."""
    session.install("ansible-core")
    folder = Path(session.create_tmp())
    session.run("ansible-galaxy", "collection", "build", "--force", "--output-path", str(folder), str(HERE))
    for path in folder.glob("*.tar.gz"):
        with tarfile.open(path) as tar:
            names = [member.name for member in tar.getmembers() if member.isfile()]
        wrong = unexpected(names)
        if wrong:
            session.error(f"These {len(wrong)} files do not belong in the archive: " + ", ".join(wrong[:20]))
        session.log(f"{path.name}: {len(names)} files")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site into the folder that the variable TAPVIRT_DOCS names."""
    site = Path(os.environ.get("TAPVIRT_DOCS", str(HERE / "report" / "docs")))
    session.install("antsibull-docs", "ansible-core", "sphinx", "sphinx-ansible-theme")
    env = {"ANSIBLE_COLLECTIONS_PATH": os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")}
    source = site / "source"
    rst = source / "rst"
    source.mkdir(parents=True, exist_ok=True)
    init = ["sphinx-init", "--use-current", "--lenient", "--dest-dir", str(source)]
    init += ["--project", "tapvirt.host", "--title", "tapvirt.host", "--copyright", "The tapvirt.host authors"]
    session.run("antsibull-docs", *init, "tapvirt.host", env=env)
    build = ["--config-file", str(source / "antsibull-docs.cfg"), "collection", "--use-current", "--dest-dir", str(rst)]
    session.run("antsibull-docs", *build, "tapvirt.host", env=env)
    # No other site is looked at, and the changelog has no title before the first release.
    quiet = ["-q", "-D", "extensions=sphinx.ext.autodoc,sphinx_antsibull_ext", "-D", "suppress_warnings=toc.no_title"]
    session.run("sphinx-build", *quiet, "-b", "html", "-c", str(source), str(rst), str(site / "html"))


# What contributors of this ecosystem type: 'nox -e ansible-test-sanity'.
for kind in ("sanity", "units"):
    antsibull_nox.add_ansible_test_session(
        name=f"ansible-test-{kind}",
        description=f"Run ansible-test {kind} on this machine.",
        extra_deps_files=[],
        ansible_test_params=[kind],
        default=False,
        ansible_core_version="2.21",
        ansible_core_source="pypi",
    )


if __name__ == "__main__":
    nox.main()
