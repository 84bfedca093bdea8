"""Subsets of ImageNet, by their WordNet ids: fast.ai's, MTT's (arXiv 2203.11932), and Tiny ImageNet.

A subset is read from ImageNet's own folders, train/WNID and val/WNID, or from fast.ai's archive of it. ImageNet's validation
images are the test split, as in the field. Classes are in MTT's order.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from src.ground.errors import DataError
from src.sources import archives, contents, layouts
from src.sources.raw import Encoded, Raw
from src.sources.trees import Folder, Tree

SUBSETS: Mapping[str, Mapping[str, str]] = {
    "imagenette": {
        "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
        "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
        "n03445777": "golf ball", "n03888257": "parachute",
    },
    "imagewoof": {
        "n02096294": "Australian terrier", "n02093754": "Border terrier", "n02111889": "Samoyed", "n02088364": "beagle",
        "n02086240": "Shih-Tzu", "n02089973": "English foxhound", "n02087394": "Rhodesian ridgeback", "n02115641": "dingo",
        "n02099601": "golden retriever", "n02105641": "Old English sheepdog",
    },
    "imagefruit": {
        "n07753275": "pineapple", "n07753592": "banana", "n07745940": "strawberry", "n07747607": "orange",
        "n07749582": "lemon", "n07768694": "pomegranate", "n07753113": "fig", "n07720875": "bell pepper",
        "n07718472": "cucumber", "n07742313": "Granny Smith",
    },
    "imagemeow": {
        "n02123045": "tabby", "n02123159": "tiger cat", "n02123394": "Persian cat", "n02123597": "Siamese cat",
        "n02124075": "Egyptian cat", "n02129165": "lion", "n02129604": "tiger", "n02128925": "jaguar",
        "n02128757": "snow leopard", "n02127052": "lynx",
    },
    "imagesquawk": {
        "n01806143": "peacock", "n02007558": "flamingo", "n01818515": "macaw", "n02051845": "pelican",
        "n02056570": "king penguin", "n01614925": "bald eagle", "n01843383": "toucan", "n01518878": "ostrich",
        "n01860187": "black swan", "n01819313": "sulphur-crested cockatoo",
    },
    "imageyellow": {
        "n02206856": "bee", "n12057211": "yellow lady's slipper", "n07753592": "banana", "n07749582": "lemon",
        "n12144580": "corn", "n04146614": "school bus", "n03530642": "honeycomb", "n02129165": "lion",
        "n01773157": "black and gold garden spider", "n01531178": "goldfinch",
    },
}  # fmt: skip
IMAGENET = "imagenet"  # the folder's name
TINY = "tiny-imagenet-200"  # the name of folder and archive
WORDS, ANNOTATIONS = "words.txt", "val/val_annotations.txt"


def archive_of(subset: str) -> str:
    """fast.ai's archive, its images resized to 160 pixels on the shorter side."""
    return f"{subset}2-160.tgz"


def read_subset(folder: Path, subset: str) -> Raw | None:
    """From ImageNet's folders or fast.ai's archive or folders in `folder`, None where there is none of these."""
    ids = SUBSETS[subset]
    if (folder / archive_of(subset)).is_file():
        return _subset(archives.tree(folder / archive_of(subset)), ids)
    for root in (folder, folder / IMAGENET, *(folder / f"{subset}2{size}" for size in ("", "-160", "-320"))):
        if (root / "train" / next(iter(ids))).is_dir():
            tops = [f"{split}/{wnid}" for split in ("train", "val") for wnid in ids]
            return _subset(Folder(root, tuple(top for top in tops if (root / top).is_dir())), ids)
    return None


def _subset(tree: Tree, ids: Mapping[str, str]) -> Raw:
    found = layouts.grouped(tree)
    splits = {}
    for split, ours in (("train", "train"), ("val", "test")):
        group = found.groups.get(split, {})
        lacking = [wnid for wnid in ids if wnid not in group]
        if lacking:
            text = f"{tree.title} has no folder {split}/{lacking[0]} ({ids[lacking[0]]})"
            raise DataError(f"{text}: put ImageNet's images of all ten classes there")
        splits[ours] = layouts.encoded(tree, [group[wnid] for wnid in ids])
    others = {path for group in found.groups.values() for wnid in group if wnid not in ids for path in group[wnid]}
    left_out = {**dict.fromkeys(sorted(others), "of another class"), **found.left_out}
    return Raw(tuple(ids.values()), splits, left_out=layouts.printable(left_out), notes=found.notes)


def read_tiny(folder: Path) -> Raw | None:
    """Tiny ImageNet from its archive or its folder in `folder`, or from this itself: 200 classes in the order of their ids."""
    if (folder / f"{TINY}.zip").is_file():
        return _tiny(archives.tree(folder / f"{TINY}.zip"), f"{TINY}/")
    if (folder / TINY).is_dir():
        return _tiny(Folder(folder / TINY), "")
    return _tiny(Folder(folder), "") if (folder / ANNOTATIONS).is_file() else None


def _tiny(tree: Tree, top: str) -> Raw:
    """WNID/IMAGE in train and val, below one of which there may be a folder images; or val/images/IMAGE, with ids in a table.

    The test images have no labels: val is the test split. Without words.txt the ids are the classes' names.
    """
    held = contents.of(tree)
    words, ids = (_table(tree, f"{top}{name}", held.left_out) for name in (WORDS, ANNOTATIONS))
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    left_out = dict(held.left_out)
    for path in held.images:
        match [part for part in path.removeprefix(top).split("/") if part != "images"]:
            case ["train" | "val" as below, wnid, _]:
                splits[below].setdefault(wnid, []).append(path)
            case ["val", name]:
                splits["val"].setdefault(_class_of(tree, path, ids, name), []).append(path)
            case _:
                left_out[path] = "without a label" if path.startswith(f"{top}test/") else "in no class folder of train or val"
    for split, found in splits.items():
        if not found:
            raise DataError(f"{tree.title} has no image in {top}{split}: download Tiny ImageNet again")
    return _named(tree, splits["train"], splits["val"], words, left_out)


def _table(tree: Tree, path: str, files: Container[str]) -> Mapping[str, str]:
    """The first two columns; nothing where the file is not there. Raises DataError where it is damaged."""
    with archives.damage(tree.title):
        texts = [stream.read().decode(errors="replace") for _, stream in tree.streams([path])] if path in files else [""]
    return dict(line.split("\t")[:2] for line in texts[0].splitlines() if "\t" in line)


def _class_of(tree: Tree, path: str, ids: Mapping[str, str], name: str) -> str:
    if name not in ids:
        text = (
            f"{tree.title} has {path} without a class"
            if ids
            else f"{tree.title} has {path}, but lacks {ANNOTATIONS} with its class"
        )
        raise DataError(f"{text}: download Tiny ImageNet again, or put the images of val into a folder for each class")
    return ids[name]


def _named(
    tree: Tree,
    train: Mapping[str, list[str]],
    test: Mapping[str, list[str]],
    words: Mapping[str, str],
    left_out: layouts.LeftOut,
) -> Raw:
    """The first of each class's words as its name."""
    order = sorted(train)
    foreign = sorted(set(test) - set(train))
    if foreign:
        raise DataError(f"{tree.title} has the class {foreign[0]} in val, but not in train: download Tiny ImageNet again")
    names = [words.get(wnid, wnid).split(",")[0] for wnid in order]
    classes = [name if names.count(name) == 1 else f"{name} {wnid}" for name, wnid in zip(names, order, strict=True)]
    splits = {"train": _split(tree, order, train), "test": _split(tree, order, test)}
    return Raw(tuple(classes), splits, left_out=layouts.printable(left_out))


def _split(tree: Tree, order: Sequence[str], paths: Mapping[str, list[str]]) -> Encoded:
    return layouts.encoded(tree, [paths.get(wnid, ()) for wnid in order])
