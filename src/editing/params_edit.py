"""Adds to params.yaml, and leaves every other byte of it as it is: comments, order, number formats.

A YAML library's round trip rewrites spaces and indents of the whole file; here the parser only says where a section ends, and
the new lines are put there as text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from src.ground.errors import UserError
from src.settings.distillation import Distillation
from src.settings.params import PARAMS_FILE, document, entry, load, parse
from src.store import files

Section = Mapping[str, Mapping[str, Any]]  # name -> settings
Additions = Mapping[str, Section]  # section -> its new names

WIDTH = 128  # of a line that keeps a mapping in braces
PLAIN = re.compile(r"(?!(?i:y|n|yes|no|on|off)$)[\w./][\w./ +-]*")  # no quotes, if it reads back; YAML 1.1 has words for true
FOLLOWING_COMMENTS = re.compile(r"(?:[ \t]+#[^\n]*(?:\n|\Z))*")  # indented: they belong to the lines before them


def add(additions: Additions, path: Path = PARAMS_FILE) -> list[str]:
    """Add named settings to sections, and return what was added, as 'runs.NAME'.

    A name that stands there with equal settings is left alone. Raises UserError where one has others, and ParamsError where
    the file is wrong, or would be with the additions; it is then as it was.
    """
    load(path)  # reports a file that is wrong already
    text = _read(path)
    raw, additions = _document(text), _document(text_of(additions))
    _refuse_others(raw, additions, path)
    new = {
        section: {name: settings for name, settings in entries.items() if name not in raw[section]}
        for section, entries in additions.items()
    }
    tree = _tree(text)
    places = {section: _child(tree, section) for section, entries in new.items() if entries}
    for section in sorted(places, key=lambda section: places[section].start_mark.index, reverse=True):
        text = _inserted(text, section, places[section], new[section], path)  # from below, so that places stay what they are
    _replace(path, text, _joined(raw, new))
    return [f"{section}.{name}" for section, entries in new.items() for name in entries]


def set_value(place: tuple[str, str, str], value: str | float | bool | None, path: Path = PARAMS_FILE) -> None:
    """Write one value at (section, name, field), which may be new in its entry. Raises as `add` does."""
    load(path)
    section, name, field = place
    text = _read(path)
    raw = _document(text)
    fields = _child(_child(_tree(text), section), name)
    old = next((node for key, node in fields.value if key.value == field), None)
    if old is not None:
        text = f"{text[: old.start_mark.index]}{_flow(value)}{text[old.end_mark.index :]}"
    else:
        column = _column(fields, f"{section}.{name}", path)
        text = _with_lines(text, _end(text, fields), [f"{column * ' '}{field}: {_flow(value)}"])
    _replace(path, text, {**raw, section: {**raw[section], name: {**raw[section][name], field: value}}})


def text_of(additions: Additions) -> str:
    """The additions as they would stand in the file."""
    return "".join(
        f"{line}\n" for line in _lines({section: entries for section, entries in additions.items() if entries}, 0, 2)
    )


# -- names that stand there already


def _refuse_others(raw: Section, additions: Additions, path: Path) -> None:
    """Raises UserError where a known name would get other settings; defaults that are left out are equal to those written."""
    for section, entries in additions.items():
        for name in [name for name in entries if name in raw[section]]:
            old, new = (_meaning(section, name, tree[section][name], path) for tree in (raw, additions))
            changes = "; ".join(_differences(old, new))
            if changes:
                text = f"{path} has other settings at {section}.{name} ({changes})"
                raise UserError(f"{text}: rename them there, or make them equal")


def _joined(raw: Section, additions: Additions) -> dict[str, Any]:
    """The document with the additions."""
    return {**raw, **{section: {**raw[section], **entries} for section, entries in additions.items()}}


def _meaning(section: str, name: str, value: Any, path: Path) -> Mapping[str, Any]:
    """All fields of an entry, defaults included; a method need not be complete."""
    if section != "distill":
        return entry(section, name, value, str(path)).model_dump()
    defaults = {field: info.default for field, info in Distillation.model_fields.items() if not info.is_required()}
    return {**defaults, **{field: tuple(one) if isinstance(one, list) else one for field, one in value.items()}}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    fields = [field for field in {**old, **new} if old.get(field) != new.get(field)]
    return [f"{field} is {_flow(old.get(field))}, would be {_flow(new.get(field))}" for field in fields[:3]]


# -- the file


def _read(path: Path) -> str:
    """The text with its own line ends."""
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def _replace(path: Path, text: str, wanted: Mapping[str, Any]) -> None:
    """Put the text in the file's place, once it is sure that it is right and says what is wanted."""
    parse(wanted, str(path))
    try:
        agrees = _document(text) == wanted
    except YAMLError:
        agrees = False
    if not agrees:
        raise UserError(f"{path} is laid out so that nothing can be added to it: write each setting on a line of its own")
    files.write_text(path.resolve(), text)  # of a link its target


def _document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = document(text)
    return found


def _tree(text: str) -> MappingNode:
    """The document with the places of its parts; marks of the pure parser count characters."""
    found: MappingNode = YAML(typ="safe", pure=True).compose(text)
    return found


def _child(node: MappingNode, name: str) -> MappingNode:
    found: MappingNode = next(child for key, child in node.value if key.value == name)
    return found


def _inserted(text: str, section: str, node: MappingNode, entries: Section, path: Path) -> str:
    """The text with the entries at the end of the section, which is this node."""
    if node.flow_style and not node.value:  # `experts: {}`, where there were none so far
        begun = text[: node.start_mark.index].rstrip(" ") + text[node.end_mark.index :]
        place = begun.find("\n", node.start_mark.index - 1) + 1 or len(begun)
        return _with_lines(begun, place, list(_lines(entries, 2, 1)))
    return _with_lines(text, _end(text, node), list(_lines(entries, _column(node, section, path), 1)))


def _column(node: MappingNode, place: str, path: Path) -> int:
    """Where the keys of a mapping stand; raises UserError for a mapping in braces."""
    if node.flow_style:
        raise UserError(f"{path} has {place} in braces, to which no line can be added: write its names on lines of their own")
    column: int = node.value[0][0].start_mark.column
    return column


def _end(text: str, node: Node) -> int:
    """Where the line after a mapping's last one starts, comments that belong to it included."""
    while isinstance(node, CollectionNode) and not node.flow_style:
        key, node = node.value[-1] if isinstance(node, MappingNode) else (None, node.value[-1])
        if key is not None and node.start_mark.index < key.start_mark.index:
            node = key  # the value is an alias: it stands where its anchor is
    last = len(text[: node.end_mark.index].rstrip())  # a block scalar's mark stands after its line's end
    end = text.find("\n", last) + 1 or len(text)
    comments = FOLLOWING_COMMENTS.match(text, end)
    return comments.end() if comments else end


def _with_lines(text: str, place: int, lines: list[str]) -> str:
    """The text with lines at a place, in the file's own line ends."""
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text[:place] if text[:place].endswith("\n") else text[:place] + newline
    return before + "".join(line + newline for line in lines) + text[place:]


# -- settings as YAML, in the manner of params.yaml


def _lines(settings: Mapping[str, Any], indent: int, blocks: int) -> Iterator[str]:
    """One line a setting; mappings stand in braces but for so many levels of `blocks`, and where a line would be too long."""
    for name, value in settings.items():
        line = f"{indent * ' '}{_flow(name)}: {_flow(value)}"
        if isinstance(value, Mapping) and value and (blocks or len(line) > WIDTH):
            yield f"{indent * ' '}{_flow(name)}:"
            yield from _lines(value, indent + 2, max(blocks - 1, 0))
        else:
            yield line


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(name)}: {_flow(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return _real(value)
    return _quoted(value) if isinstance(value, str) else str(value)


def _real(value: float) -> str:
    """With a dot, by which YAML 1.1 and 1.2 know a real number: 0.01, 1.0e-5."""
    if value == 0 or 1e-3 < abs(value) < 1e16:
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    first, *rest = map(str, digits)
    return f"{'-' * sign}{first}.{''.join(rest) or '0'}e{int(exponent) + len(rest):+d}"


@functools.cache
def _quoted(value: str) -> str:
    """Plain where that reads back as the same text."""
    plain = PLAIN.fullmatch(value) is not None and YAML(typ="safe").load(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
