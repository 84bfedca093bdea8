#!/usr/bin/env bash
# dask distributed 2026.8.0: a task that never began is given up with KilledWorker, for workers that died at another task.
#
# Guess before running: `distributed.scheduler.allowed-failures` counts the deaths of workers that were running the task, so that
# with 0 of them allowed a task that only waited behind the one that killed its worker is run on the next worker.
# Seen: every task that the scheduler had assigned to the dead worker counts as suspicious, those in its queue as well: the one
# behind fails with KilledWorker, and has not written the file that is the first thing it does. By default a worker of one thread
# is assigned a second task. So who counts deaths of a task has to count how often it began.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet distributed==2026.8.0
cd "$folder"
cat > blamed.py <<'PY'
import os
import signal
import time
from pathlib import Path

import dask
from distributed import Client, LocalCluster


def deadly():
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)


def waits():
    Path("began").touch()
    return "done"


if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
        first = client.submit(deadly, priority=1)
        time.sleep(1)
        second = client.submit(waits)
        error = second.exception(timeout=60)
        print(f"{type(error).__name__ if error else second.result()}, {'began' if Path('began').exists() else 'never began'}")
PY
found=$("$folder/venv/bin/python" blamed.py 2>/dev/null | tail -n 1)
echo "the task that waited: $found"
[ "$found" = "KilledWorker, never began" ] || { echo "changed: a task that waits is not blamed"; exit 1; }
echo "as found: distributed 2026.8.0"
