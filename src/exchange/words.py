"""The README of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.pages import page
from src.pages.page import Accuracy

SCRIPT = """`train_on_it.py` trains fresh students as the run's protocol has it and tests them on real images of yours; it takes
torch{also} alone, and its settings from `set.json`:

```sh
python train_on_it.py --test test.npz --students 5
```

`test.npz` holds `images` and `labels`; `python train_on_it.py --help` says in which form."""
NO_SCRIPT = "`set.json` holds the students' settings. A script that trains them comes with runs of a ConvNet alone."
WHITENED = """Networks read whitened pixels, `(pixels - mean) @ matrix` of the flattened image, with `mean` (D,) and `matrix`
(D, D) from `space.pt`: real images have to be whitened by the same two."""
BEYOND = """Where an image's pixels go beyond black and white, this picture shows it with less contrast,
while its PNG file, if there is one, is cut off at both."""
NORMALISED = (
    """Networks read normalised pixels, `(pixels - mean) / std` for each channel, with `mean` and `std` from `set.json`."""
)


def readme(card: Mapping[str, Any], count: int, use: str, picture: str | None = "images.png") -> str:
    """The card for people: what the `count` images are, how well they teach, and how this folder is used.

    `card` is the content of set.json; where it lacks what made the set, that is left out.
    """
    lines = [f"# {card['run']}", "", _what(card, count)]
    if picture is not None:
        lines += ["", f"![The images]({picture})", "", BEYOND]
    if (accuracy := card["accuracy"]) is not None:
        val, test = (
            page.score(Accuracy(accuracy[f"{s}_accuracy_mean"], accuracy[f"{s}_accuracy_std"])) for s in ("val", "test")
        )
        lines += ["", f"Fresh students of that network reach {test} % on the test split ({val} % on the validation split)."]
        if card["evaluation"].get("score") == "best_test":
            lines += ["", f"That is of {page.SELECTED}."]
    return "\n".join([*lines, "", use, ""])


def _what(card: Mapping[str, Any], count: int) -> str:
    dataset, run = card["dataset"], card.get("settings", {}).get("runs", {}).get(card["run"])
    names, family = ", ".join(dataset["classes"]), card["network"]["family"]
    origin = "distilled" if card.get("distilled", True) else "chosen"
    by = f"by `{run['distill']['method']}` for `{run['network']}`" if run else f"for a {family}"
    return f"{count} images for {len(dataset['classes'])} classes of `{dataset['name']}`, {origin} {by}: {names}."


def use(card: Mapping[str, Any], what: str, also: str = "", pixels: bool = True) -> str:
    """How a folder is used: `what` says what its files are, `also` what its script needs besides torch."""
    space = WHITENED if card["whitening"] == "zca" else NORMALISED
    script = SCRIPT.format(also=also and f" and {also}") if card["network"]["family"] == "ConvNet" else NO_SCRIPT
    return "\n\n".join([what, *([space] if pixels else []), script])
