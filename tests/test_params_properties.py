"""params.yaml, mutated at random thousands of times, ends in valid settings or in one clear error."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.exceptions import DvcException
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from src.ground.errors import UserError
from src.settings.base import LONGEST_NAME, NAME
from src.settings.params import Params, load, parse
from tests.imports import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
RAW = YAML(typ="safe").load(TEXT)
# drawn from the file's own words as well, so that some mutations stay valid or point somewhere else
WORDS = sorted({word.strip("{}[],:\"'") for word in TEXT.split()} - {""})
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(WORDS),
    st.sampled_from([0, 1, -1, 2**63, 1e308, 5e-324, float("inf"), float("nan"), "1e-3", "", "../x", "a/b", "null", "~"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=6
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the file, as keys from the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def mutated(place: tuple[Any, ...], how: str, key: Any, value: Any) -> Any:
    """The file with one place replaced, deleted, or given one more key."""
    raw = copy.deepcopy(RAW)
    if not place:
        return value if how == "replace" else raw
    inner = raw
    for step in place[:-1]:
        inner = inner[step]
    if how == "delete":
        del inner[place[-1]]
    elif how == "add" and isinstance(inner[place[-1]], dict):
        inner[place[-1]][key] = value
    else:
        inner[place[-1]] = value
    return raw


def check(error: UserError) -> None:
    text = str(error)
    assert text
    assert "Traceback" not in text
    assert len(text) < 200_000


@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(st.sampled_from(places(RAW)), st.sampled_from(["replace", "delete", "add"]), scalars, values)
def test_mutated_settings_are_valid_or_refused(place: tuple[Any, ...], how: str, key: Any, value: Any) -> None:
    try:
        assert isinstance(parse(mutated(place, how, key, value)), Params)
    except UserError as error:
        check(error)


@settings(max_examples=400, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(
    start=st.integers(0, len(TEXT)),
    length=st.integers(0, 40),
    insertion=st.text(max_size=8) | st.sampled_from(["\t", ": ", "- ", "{", "&a ", "*a", "!!x "]),
)
def test_mutated_text_is_valid_or_refused(start: int, length: int, insertion: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = TEXT[:start] + insertion + TEXT[start + length :]
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(load(path), Params)
    except UserError as error:
        check(error)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(name=st.from_regex(NAME, fullmatch=True) | st.from_regex(re.compile(r"[A-Za-z0-9._-]{1,6}"), fullmatch=True))
@example(name="null")
@example(name="x" * LONGEST_NAME)
def test_a_name_is_what_dvc_can_set(name: str, tmp_path: Path) -> None:
    """`dvc exp run -S`, by DVC's own code: below a name, and a name as a value."""
    path, raw = tmp_path / "params.yaml", {"runs": {name: {"ipc": 1, "experts": "other"}}, "seed": 0}
    path.write_text(json.dumps(raw), encoding="utf-8")
    try:
        apply_overrides(path, [f"runs.{name}.ipc=2", f"runs.{name}.experts={name}"])
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except DvcException:
        found = None
    can = found == {"runs": {name: {"ipc": 2, "experts": name}}, "seed": 0}
    assert can or not NAME.fullmatch(name)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"\x00" * 100, b"[" * 5000, b"a: &a [*a]\n", b"- 1\n- 2\n", b"? [a]\n: b\n"]
)
def test_files_that_are_no_settings_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    check(caught.value)
