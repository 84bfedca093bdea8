"""Format huggingface: a folder that is ready to upload as a data set, made without a network.

A Parquet file for each configuration, with a PNG `image` for people and the exact `pixels` beside it, as PNG would cut them
off; its schema's metadata holds the features as the library `datasets` reads them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from src.exchange import hub_card, scripts
from src.exchange.exported import Exported, bytes_of, check_channels, target
from src.exchange.hub_card import Configuration
from src.ground.errors import UserError
from src.store import files

FILE = "train-00000-of-00001.parquet"
COLUMNS = {
    "image": "PNG of 8 bits, cut off at black and white",
    "label": "index of the likeliest class",
    "pixels": "(C, H, W) float32, 0 black, 1 white, not bound to either",
    "probabilities": "(K,) float32, of soft labels",
}


def write(exported: Exported, folder: Path) -> None:
    """Fill a new or empty folder; raises UserError where it is not, or where the images are neither grey nor in colour."""
    write_many([exported], folder)


def write_many(sets: Sequence[Exported], folder: Path) -> None:
    """Fill a new or empty folder with a configuration for each set, named by its run, the first one the default.

    A single set lies in the folder `data`, several in a folder each. Raises UserError as `write` does, and where two sets have
    the same name.
    """
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise UserError(f"a run stands twice in {', '.join(names)}: name each once, as its name is that of a configuration")
    for exported in sets:
        check_channels(exported, "huggingface")
    with target(folder) as place:
        found = [_configuration(one, "data" if len(sets) == 1 else one.name, place) for one in sets]
        files.write_text(place / "README.md", hub_card.text(found))


def _configuration(exported: Exported, where: str, place: Path) -> Configuration:
    """Write one set to place/where; its script lies in the top folder where the set is the only one, else beside the set."""
    card = exported.described({name: COLUMNS[name] for name in features(exported)})
    (place / where).mkdir()
    table = _table(exported)
    pq.write_table(table, place / where / FILE)
    scripts.add(exported, "huggingface", card, place if where == "data" else place / where)
    size = (place / where / FILE).stat().st_size
    return Configuration(exported, card, where, features(exported), table.nbytes, size)


def features(exported: Exported) -> dict[str, Any]:
    """Columns and their types, as `datasets` writes them into a schema's metadata; the older names, which it still reads."""
    found: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(exported.classes), "_type": "ClassLabel"},
        "pixels": {"shape": list(exported.pixels.shape[1:]), "dtype": "float32", "_type": "Array3D"},
    }
    if exported.soft:
        value = {"dtype": "float32", "_type": "Value"}
        found["probabilities"] = {"feature": value, "length": len(exported.classes), "_type": "Sequence"}
    return found


def _table(exported: Exported) -> pa.Table:
    images = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", images), ("label", pa.int64()), ("pixels", pa.list_(pa.list_(pa.list_(pa.float32()))))]
    columns: dict[str, Any] = {
        "image": [
            {"bytes": _png(one.permute(1, 2, 0).numpy()), "path": f"{i}.png"} for i, one in enumerate(bytes_of(exported))
        ],
        "label": exported.indices.tolist(),
        "pixels": exported.pixels.tolist(),
    }
    if exported.soft:
        fields.append(("probabilities", pa.list_(pa.float32(), len(exported.classes))))
        columns["probabilities"] = exported.labels.tolist()
    metadata = {"huggingface": json.dumps({"info": {"features": features(exported)}})}
    return pa.table(columns, schema=pa.schema(fields, metadata=metadata))


def _png(array: Any) -> bytes:
    """Of uint8 (H, W, C)."""
    file = io.BytesIO()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(file, format="PNG")
    return file.getvalue()
