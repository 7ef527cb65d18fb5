"""Starts guidellm in its container: the API key comes from a file, and is never an argument.

The variable ``LOADTEST_ARGS`` holds more options, as a shell would split them.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

if file := os.environ.get("RIVER_CLIENT_KEY_FILE"):
    os.environ["GUIDELLM__SPEC__BACKEND__API_KEY"] = Path(file).read_text(encoding="utf-8").strip()
more = shlex.split(os.environ.get("LOADTEST_ARGS", ""))
os.execvp("guidellm", ["guidellm", "run", *sys.argv[1:], *more])
