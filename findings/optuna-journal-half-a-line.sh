#!/usr/bin/env bash
# Optuna 5.0.0, JournalFileBackend: what a full disk leaves of a journal's last line is forgiven only until the next append.
#
# Guess before running: a journal whose last line was cut off is either refused at once, or read up to that line, and whatever is
# appended later starts on a line of its own.
# Seen: it is read up to that line, silently; the next process that works on it appends its entry behind the half line, on the same
# line, and fails in that call; and from then on nobody can read the journal: JSONDecodeError, all earlier trials included. So
# whoever opens a study after a crash has to cut the half line off before anything is appended.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0
cd "$folder"
cat > study.py <<'PY'
import sys

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = JournalStorage(JournalFileBackend("journal.log"))
study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
if sys.argv[1] == "work":
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
print(len(study.trials), "trials")
PY
run() { "$folder/venv/bin/python" study.py "$1" 2>&1 | tail -n 1; }

[ "$(run work)" = "1 trials" ] && [ "$(run work)" = "2 trials" ]
size=$(stat -c %s journal.log)
truncate -s $((size - 5)) journal.log # the last entry is the end of trial 1: its line is half there
read_only=$(run read)
appended=$(run work || true)
after=$(run read || true)
echo "half a line at the end, read:   $read_only"
echo "then another trial is added:    $appended"
echo "then read by another process:   $after"
case "$read_only" in "2 trials") ;; *) echo "changed: a half line is no longer passed over"; exit 1 ;; esac
case "$after" in *JSONDecodeError*) ;; *) echo "changed: the journal can be read"; exit 1 ;; esac
echo "as found: optuna 5.0.0"
