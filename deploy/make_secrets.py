#!/usr/bin/env python3
"""Write the key files that compose.yaml mounts; files that exist are kept.

Needs the standard library only. The containers run under users of their own and must be able to
read the files, so these are world-readable; the folder around them is its owner's alone, which
keeps other users of the host out.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"
KEY_BYTES = 32


def write_once(path: Path, text: str) -> str:
    """Create ``path`` with the line ``text`` unless it is there; return what it then holds.

    Raises:
        OSError: it can be neither read nor written.
    """
    if path.exists():
        print(f"kept    {path}")
        return path.read_text(encoding="utf-8").strip()
    path.write_text(f"{text}\n" if text else "", encoding="utf-8")
    path.chmod(0o644)
    print(f"written {path}")
    return text


def make_secrets(folder: Path) -> None:
    """Create the folder and its files.

    ``api_keys`` is what opens every route of the server, one key per line: that of clients.
    ``metrics_key`` is Prometheus' own and opens what it reads.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    client_key, metrics_key, _ = (
        write_once(folder / name, secrets.token_urlsafe(KEY_BYTES))
        for name in ("client_key", "metrics_key", "grafana_password")
    )
    accepted = write_once(folder / "api_keys", client_key).split()
    if client_key not in accepted:
        print("warning: api_keys, which was kept, lacks the key in client_key")
    if metrics_key in accepted:
        print("warning: api_keys holds the metrics key: the server refuses it there, take it out")
    # Empty is valid: only gated models need a token of the Hugging Face Hub.
    write_once(folder / "hf_token", "")


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    try:
        make_secrets(parser.parse_args().folder)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
