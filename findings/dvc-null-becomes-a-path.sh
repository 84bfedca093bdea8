#!/usr/bin/env bash
# DVC 3.67.1: a null of params.yaml in the path of a foreach stage's dependency is no absent dependency.
#
# Guess before running: an entry `buffer: null` makes `deps: [data/${item.buffer}]` either an error that names the key, as a
# missing key does, or a stage without that dependency.
# Seen: the stage depends on the path data/None, by Python's word for null. `dvc repro` fails as that does not exist (Errno 2),
# and where a file of that name happens to lie there it is taken without a word. A key that is left out is an error when the file is
# parsed. So an optional dependency of a foreach stage needs a place of its own that is always there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dvc==3.67.1
mkdir "$folder/work" && cd "$folder/work"
dvc() { "$folder/venv/bin/python" -m dvc "$@" 2>&1; }

git init --quiet && dvc init --quiet
cat > dvc.yaml <<'YAML'
stages:
  make:
    foreach: ${runs}
    do:
      cmd: echo made > ${key}.txt
      deps:
        - data/${item.buffer}
      outs:
        - ${key}.txt
YAML
printf 'runs:\n  one:\n    buffer: null\n' > params.yaml
null=$(dvc repro || true)
mkdir data && echo anything > data/None
taken=$(dvc repro || true)
printf 'runs:\n  one:\n    other: 1\n' > params.yaml
absent=$(dvc repro || true)
echo "null:                  $(grep -m 1 -i "missing\|error" <<< "$null" || true)"
echo "null, data/None there: $(grep -m 1 "Running stage" <<< "$taken" || true)"
echo "key left out:          $(grep -m 1 -i "could not find\|error" <<< "$absent" || true)"
grep -q "data/None" <<< "$null" || { echo "changed: null is no longer the path None"; exit 1; }
grep -q "Running stage 'make@one'" <<< "$taken" || { echo "changed: a file of that name is no longer taken"; exit 1; }
grep -qi "item.buffer" <<< "$absent" || { echo "changed: a key that is left out is no longer an error"; exit 1; }
echo "as found: dvc 3.67.1"
