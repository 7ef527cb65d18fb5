#!/bin/sh
# Create a virtual environment with a Python that River and vLLM run on; keep one that is there.
#
#   make_venv.sh FOLDER    create it
#   make_venv.sh --find    print the interpreter that would be used, create nothing
#
# PYTHON=… names the interpreter; without it the candidates below are tried in turn.
set -eu

candidates=${PYTHON:-"python3.11 python3.12 python3.13 python3.14 python3 python"}

# Says on stderr what is wrong with the interpreter that runs it.
probe='
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(version)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(version + " without the venv module (Debian, Ubuntu: apt-get install python3-venv)")
'

find_python() {
    seen=""
    for name in $candidates; do
        command -v "$name" >/dev/null 2>&1 || continue
        if reason=$("$name" -c "$probe" 2>&1); then
            command -v "$name"
            return 0
        fi
        # A version manager prints a paragraph for a version that it has not activated.
        seen="$seen
  $name: $(printf '%s\n' "$reason" | sed -n 1p)"
    done
    {
        echo "error: no Python 3.11 to 3.14 with the venv module among: $candidates"
        [ -z "$seen" ] || echo "found:$seen"
        echo "Install one, or name it: make PYTHON=/path/to/python3"
    } >&2
    return 1
}

case ${1-} in
--find)
    find_python
    exit
    ;;
"" | -*)
    echo "usage: make_venv.sh FOLDER | --find" >&2
    exit 2
    ;;
esac

folder=$1
if "$folder/bin/python" -c "$probe" 2>/dev/null; then
    exit 0
fi
if [ -e "$folder" ] && [ ! -f "$folder/pyvenv.cfg" ] && [ -n "$(ls -A "$folder")" ]; then
    echo "error: $folder exists and is no virtual environment; move it away or set VENV=" >&2
    exit 1
fi
python=$(find_python)
echo "Creating $folder with $python"
"$python" -m venv --clear "$folder"
