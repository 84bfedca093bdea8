"""The card of a data set on the Hugging Face Hub: README.md, with front matter in YAML and the words below it.

The front matter names no licence, as that follows the real images'; the words ask the user for it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

from src.exchange import words
from src.exchange.exported import Exported

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))  # the Hub's words
LICENCE = """**Before you upload this folder, state its licence**: add a line such as `license: cc-by-4.0` to the front matter
above. The images were made from `{dataset}`, whose terms apply to what is derived from it."""
WHAT = """`image` is a PNG picture of 8 bits, cut off at black and white; `pixels` is the same image exactly, (C, H, W) in
float32, 0 black and 1 white but not bound to either: **train on `pixels`**. `label` is its class{soft}. The students'
learning rate is {syn_lr:.6g}.

```python
from datasets import load_dataset

synthetic = load_dataset("THIS REPOSITORY"{config}, split="train").with_format("torch")
```"""


@dataclass(frozen=True)
class Configuration:
    """One set as it was written."""

    exported: Exported
    card: Mapping[str, Any]  # the content of its set.json
    where: str  # its folder
    features: Mapping[str, Any]  # as in the Parquet file's metadata
    size: int  # bytes in memory
    download: int  # bytes on disk


def text(found: Sequence[Configuration]) -> str:
    """The whole README.md."""
    front = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096  # a class name with spaces stays on its line
    yaml.dump(front_matter(found), front)
    licence = LICENCE.format(dataset=", ".join(sorted({one.exported.dataset for one in found})))
    return f"---\n{front.getvalue()}---\n\n" + "\n\n".join([*(_words(one, len(found) > 1) for one in found), licence, ""])


def front_matter(found: Sequence[Configuration]) -> dict[str, Any]:
    """What the Hub and the library read of the card; names are quoted, as its YAML 1.1 takes yes, no and on for booleans."""
    names = [Quoted(one.exported.name if len(found) > 1 else "default") for one in found]
    configs: list[dict[str, Any]] = []
    for name, one in zip(names, found, strict=True):
        path = Quoted(f"{one.where}/train-*")
        configs.append({"config_name": name, "data_files": [{"split": "train", "path": path}]})
    configs[0] |= {"default": True} if len(found) > 1 else {}
    infos = [{"config_name": name, **_info(one)} for name, one in zip(names, found, strict=True)]
    return {
        "pretty_name": Quoted(", ".join(one.exported.name for one in found)),
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "trajectory-matching"],
        "size_categories": [_size(sum(len(one.exported.pixels) for one in found))],
        "configs": configs,
        "dataset_info": infos if len(infos) > 1 else infos[0],
    }


def _info(one: Configuration) -> dict[str, Any]:
    split = {"name": "train", "num_bytes": one.size, "num_examples": len(one.exported.pixels)}
    features = [{"name": name, **_feature(kind)} for name, kind in one.features.items()]
    return {"features": features, "splits": [split], "download_size": one.download, "dataset_size": one.size}


def _feature(kind: Mapping[str, Any]) -> dict[str, Any]:
    """A feature as the card has it."""
    match kind["_type"]:
        case "Image":
            return {"dtype": "image"}
        case "ClassLabel":
            return {"dtype": {"class_label": {"names": {str(k): Quoted(name) for k, name in enumerate(kind["names"])}}}}
        case "Array3D":
            return {"dtype": {"array3_d": {"shape": kind["shape"], "dtype": kind["dtype"]}}}
        case _:
            return {"sequence": kind["feature"]["dtype"], "length": kind["length"]}


def _size(count: int) -> str:
    return next((word for bound, word in SIZES if count < bound), "n>1M")


def _words(one: Configuration, several: bool) -> str:
    soft = ", the likeliest of its `probabilities`, which students learn" if one.exported.soft else ""
    config = f', "{one.exported.name}"' if several else ""
    what = WHAT.format(soft=soft, config=config, syn_lr=one.exported.syn_lr)
    if several:
        what += f"\n\nIts files lie in `{one.where}`, with `set.json` and the script that trains on it."
    return words.readme(one.card, len(one.exported.pixels), words.use(one.card, what, "pyarrow"), picture=None).rstrip()
