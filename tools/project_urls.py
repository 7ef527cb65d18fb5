#!/usr/bin/env python3
"""Make the links for PyPI absolute: README.md's, and ``[project.urls]``.

    tools/project_urls.py https://github.com/OWNER/NAME v0.2.0   changes both in this checkout
    tools/project_urls.py --version                              prints the project's version

The release workflow runs this before its build: only there the repository's address is known.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")


def absolute(markdown: str, home: str, tag: str) -> str:
    """``markdown`` with links to the repository's files made absolute: ``home`` at ``tag``."""

    def replaced(match: re.Match[str]) -> str:
        image, text, path = match.groups()
        return f"{image}{text}({home}/{'raw' if image else 'blob'}/{tag}/{path})"

    return LINK.sub(replaced, markdown)


def urls(home: str, tag: str) -> str:
    """The table ``[project.urls]``."""
    return f"""
[project.urls]
Source = "{home}"
Documentation = "{home}/tree/{tag}/docs"
Changelog = "{home}/blob/{tag}/CHANGELOG.md"
Issues = "{home}/issues"
"""


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("home", nargs="?", help="address of the repository")
    parser.add_argument("tag", nargs="?", help="tag that the links lead to")
    parser.add_argument("--version", action="store_true", help="print the project's version")
    args = parser.parse_args()
    settings, readme = ROOT / "pyproject.toml", ROOT / "README.md"
    project = settings.read_text(encoding="utf-8")
    if args.version:
        print(tomllib.loads(project)["project"]["version"])
        return 0
    if not (args.home and args.tag):
        parser.error("HOME and TAG, or --version")
    readme.write_text(
        absolute(readme.read_text(encoding="utf-8"), args.home, args.tag), encoding="utf-8"
    )
    settings.write_text(project + urls(args.home, args.tag), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
