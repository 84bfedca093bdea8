#!/usr/bin/env bash
# safetensors 0.8.0 and numpy 2.4.6: a file that is there and can't be opened is a missing one, by the error's type and its words.
#
# Guess before running: safe_open raises what Python's open raises, so that `except FileNotFoundError` is taken where there is no
# file, and PermissionError or OSError(EMFILE) come through.
# Seen: with the limit of open files used up, FileNotFoundError "No such file or directory" of a file that os.stat finds, and the
# same where it is a link to itself (ELOOP) and, as another user than root, where it may not be read. Its errno is None in all
# three. So who takes FileNotFoundError for "nothing was saved yet", and begins anew, replaces a good checkpoint on a node that
# has run out of open files: open the file by Python's own means first.
set -euo pipefail
folder=$(mktemp -d)
trap 'chmod -R u+rwx "$folder"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$folder/opening.py" <<'PY'
import os
import resource
import sys
from contextlib import suppress

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def told(opening, path):
    try:
        opening(path)
    except OSError as error:
        return f"{type(error).__name__}, errno {error.errno}"
    return "opened"


def by_library(path):
    with safe_open(path, "np"):
        pass


def by_python(path):
    open(path, "rb").close()


def look(what, path):
    theirs, python = told(by_library, path), told(by_python, path)
    print(f"{what}: safetensors says {theirs}; Python says {python}")
    return theirs == "FileNotFoundError, errno None" and not python.startswith(("FileNotFoundError", "opened"))


path, loop = os.path.join(sys.argv[1], "state.safetensors"), os.path.join(sys.argv[1], "loop.safetensors")
save_file({"theta": np.zeros(3, np.float32)}, path)
os.symlink(loop, loop)
assert told(by_library, path) == "opened"
seen = [look("a link to itself", loop)]
if os.getuid():
    os.chmod(path, 0)
    seen.append(look("no right to read it", path))
    os.chmod(path, 0o600)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
with suppress(OSError):
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
assert os.stat(path).st_size
seen.append(look("no more open files", path))
sys.exit(not all(seen))
PY
"$folder/venv/bin/python" "$folder/opening.py" "$folder"
echo "as described"
