"""Processes that a command started: what must be gone once it has ended."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

COURIER_SECONDS = 60.0  # it delivers what the command tracked, and goes when nothing has come for ten seconds


def check_gone(children: Sequence[psutil.Process], seconds: float = 10.0, zombies_count: bool = True) -> None:
    """Checks that all ended with their command, but for the courier, and that this one goes by itself."""
    alive = psutil.wait_procs(children, timeout=seconds)[1]
    couriers = [one for one in alive if _is_courier(one)]
    assert not _left([one for one in alive if one not in couriers], zombies_count)
    assert not _left(psutil.wait_procs(couriers, timeout=COURIER_SECONDS)[1], zombies_count)


def _left(processes: Sequence[psutil.Process], zombies_count: bool) -> list[psutil.Process]:
    return [one for one in processes if zombies_count or one.status() != psutil.STATUS_ZOMBIE]


def _is_courier(process: psutil.Process) -> bool:
    try:
        return "courier.main()" in " ".join(process.cmdline())
    except psutil.Error:
        return False
