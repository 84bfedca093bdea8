"""What a tracking store is called: one name a store, however it is spelled, and none that a moved repository would break.

A sqlite file inside the repository has a name relative to its top, so that the store travels with the folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from src.ground.host import workspace

SQLITE = "sqlite:///"
OWN = f"{SQLITE}mlflow.db"  # the repository's
HOST = re.compile(r"[A-Za-z0-9.-]+:\d+(/.*)?")  # a server's address without its scheme
PORTS = {"http": ":80", "https": ":443"}


def current() -> str:
    """The store that sessions of this process are for."""
    return named(os.environ.get("MLFLOW_TRACKING_URI"))


def named(uri: str | None) -> str:
    """The name of the store at MLflow's `uri`; the repository's own where there is none."""
    text = (uri or "").strip() or OWN
    if text.startswith(SQLITE):
        return SQLITE + _from_top(text.removeprefix(SQLITE))
    return _server(f"http://{text}" if HOST.fullmatch(text) else text)


def _from_top(path: str) -> str:
    """Also of a path that was meant from the folder of a study, or from DVC's temporary copy of the repository."""
    top, place = workspace(), (workspace() / path).resolve()
    return place.relative_to(top).as_posix() if place.is_relative_to(top) else str(place)


def _server(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in PORTS:
        return uri
    user, at, host = parts.netloc.rpartition("@")
    place = user + at + host.lower().removesuffix(PORTS[parts.scheme])
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), parts.query, ""))


def address(store: str) -> str:
    """What MLflow takes for the store of this name."""
    return f"{SQLITE}{workspace() / store.removeprefix(SQLITE)}" if store.startswith(SQLITE) else store


def sqlite_file(store: str) -> Path | None:
    """The file of a sqlite store, absolute; None of any other."""
    return workspace() / store.removeprefix(SQLITE).partition("?")[0] if store.startswith(SQLITE) else None


def travels(store: str) -> bool:
    """Whether it lies inside the repository."""
    file = sqlite_file(store)
    return file is not None and file.is_relative_to(workspace())
