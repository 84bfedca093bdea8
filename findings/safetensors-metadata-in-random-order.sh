#!/usr/bin/env bash
# safetensors 0.8.0 and DVC 3.67.1: a stage that saves the same tensors with the same metadata gives its followers new bytes.
#
# Guess before running: a file of safetensors is a function of its tensors and its metadata, in the order given or in sorted order,
# so that DVC skips the stage behind when the one before was run again and has saved the same.
# Seen: tensors are always in the same order, but the entries of `metadata` in another one each time, from one process to the next
# and from one call to the next. Of 12 files with four entries most have a digest of their own, and DVC runs the follower again.
# With a single entry all 12 are the same. So who versions such files by digest puts all metadata into one entry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 dvc==3.67.1
mkdir "$folder/work" && cd "$folder/work"
cat > save.py <<'PY'
import json
import sys

import numpy as np
from safetensors.numpy import save_file

about = {"kind": "synthetic set", "method": "MTT", "images per class": "1", "seed": "0"}
metadata = about if sys.argv[2] == "four" else {"about": json.dumps(about)}
save_file({"labels": np.arange(10), "pixels": np.zeros((10, 3, 4, 4), np.float32)}, sys.argv[1], metadata=metadata)
PY
cat > same.py <<'PY'
import sys

import numpy as np
from safetensors import safe_open

first, *others = [safe_open(path, "np") for path in sys.argv[1:]]
for other in others:
    assert other.metadata() == first.metadata() and list(other.keys()) == list(first.keys()) == ["labels", "pixels"]
    assert all(np.array_equal(first.get_tensor(key), other.get_tensor(key)) for key in first.keys())
PY

python="$folder/venv/bin/python"
for entries in four one; do
  for number in $(seq 12); do "$python" save.py "$entries$number.safetensors" "$entries"; done
  "$python" same.py "$entries"*.safetensors
  printf -v "$entries" '%s' "$(sha256sum "$entries"*.safetensors | cut -d' ' -f1 | sort -u | wc -l)"
done
echo "digests of 12 equal files: $four with four entries of metadata, $one with one"
[ "$four" -ge 2 ] && [ "$one" -eq 1 ]

git init --quiet && "$python" -m dvc init --quiet
cat > dvc.yaml <<'YAML'
stages:
  save:
    cmd: $PYTHON save.py set.safetensors $ENTRIES
    outs: [set.safetensors]
  follow:
    cmd: echo followed >> followed.txt
    deps: [set.safetensors]
YAML
export PYTHON="$python"
for ENTRIES in four one; do
  export ENTRIES
  "$python" -m dvc repro --quiet --force && : > followed.txt
  for number in $(seq 6); do "$python" -m dvc repro --quiet --force --single-item save && "$python" -m dvc repro --quiet; done
  printf -v "$ENTRIES" '%s' "$(wc -l < followed.txt)"
done
echo "six times saved again, the follower ran: $four times with four entries, $one with one"
[ "$four" -ge 1 ] && [ "$one" -eq 0 ]
