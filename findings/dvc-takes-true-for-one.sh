#!/usr/bin/env bash
# DVC 3.67.1: a parameter that changes from 1 to true, from 0 to false, or from 1 to 1.0 has not changed.
#
# Guess before running: `dvc repro` runs a stage again when the type of one of its parameters is another one, since 1 and true are
# different values of YAML, and what reads the file may well take them differently: a penalty of weight 1, or the usual one; one
# feature or all of them, as scikit-learn's max_features has it for 1 and 1.0.
# Seen: "Stage 'reads' didn't change, skipping", and `dvc status` knows of no change: values are compared as Python does, where
# True == 1 == 1.0, in lists as well. `dvc params diff` shows the list, which it compares as text, and not the value alone. What
# the stage made of 1 stays as what it makes of true. From 1 to '1' it is run again, and from 1 to true or 1.0 a stage is that has
# the value in its command. So who lets a parameter be a switch or a number, or a count or a fraction, gives each a name of its
# own, or makes the file a dependency, whose bytes count.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dvc==3.67.1
mkdir "$folder/work" && cd "$folder/work"
dvc() { "$folder/venv/bin/python" -m dvc "$@" 2>&1; }

git init --quiet && dvc init --quiet
git config user.name nobody && git config user.email nobody@example.org
cat > dvc.yaml <<'YAML'
stages:
  reads:
    cmd: cp params.yaml made.yaml
    params: [value, several]
    outs: [made.yaml]
  told:
    cmd: echo ${value} > told.txt
    outs: [told.txt]
YAML
set_to() { printf 'value: %s\nseveral: [%s, 2]\n' "$1" "$1" > params.yaml; }

# what DVC makes of a parameter that was $1 when all was made and committed, and is $2 now
changed() {
  local reads="run again" told="run again" status difference
  set_to "$1" && dvc repro --quiet --force && git add --all && git commit --quiet --message "$1"
  set_to "$2"
  status=$(dvc status reads) difference=$(dvc params diff)
  if grep -q "didn't change, skipping" <<< "$(dvc repro reads)"; then reads=skipped; fi
  if grep -q "didn't change, skipping" <<< "$(dvc repro told)"; then told=skipped; fi
  if grep -q "up to date" <<< "$status" && ! grep -qw value <<< "$difference"; then reads="unchanged, $reads"; fi
  if [[ $reads == *skipped ]]; then grep -qxF "value: $1" made.yaml; fi
  echo "from $1 to $2: what reads it $reads, what has it in its command $told" | tee -a seen.txt
}
for pair in "1 true" "0 false" "1 1.0" "1 '1'"; do changed ${pair% *} ${pair#* }; done
diff seen.txt - <<'TXT' || { echo "changed"; exit 1; }
from 1 to true: what reads it unchanged, skipped, what has it in its command run again
from 0 to false: what reads it unchanged, skipped, what has it in its command run again
from 1 to 1.0: what reads it unchanged, skipped, what has it in its command run again
from 1 to '1': what reads it run again, what has it in its command skipped
TXT
echo "as found: dvc 3.67.1"
