"""Starts River's server in its container; the variable ``RIVER_ARGS`` holds more options.

They are split here, as a shell would: not every Compose splits a command after it has put the
variables in.
"""

import os
import shlex
import sys

more = shlex.split(os.environ.get("RIVER_ARGS", ""))
os.execvp("river-vllm", ["river-vllm", "serve", *sys.argv[1:], *more])
