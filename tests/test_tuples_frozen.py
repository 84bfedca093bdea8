"""Frozen encoders: their vectors are those of a direct forward pass, and weights that do not fit are told in sentences."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from src.ground.errors import DataError, UserError
from src.settings import resolved
from src.settings.datasets import FeaturesModality
from src.settings.params import parse
from src.sources.tuples import frozen
from src.sources.tuples.raw import RawItems
from src.sources.tuples.reading import TupleSource
from src.stages.tuples import shown as shown_of
from src.store.values import TupleStatistics
from tests import tuples
from tests.small_run import STORE, made
from tests.test_tuples_tables import captions, read, write

SIZE = 32
MEAN, STD = (torch.tensor(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's
WORDS: dict[str, Any] = {"kind": "text", "length": 12, "numbers": 4, "column": "caption"}


def model(name: str = "resnet18", **options: Any) -> torch.nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    found: torch.nn.Module = models.get_model(name, weights=None, **options).eval()
    return found


def modality(weights: Path, **options: Any) -> dict[str, Any]:
    return {"kind": "features", "encoder": "resnet18", "weights": str(weights), "size": SIZE, **options}


def table(folder: Path) -> Path:
    """Pictures of their encoder's size, with captions."""
    (folder / "table").mkdir()
    write(folder / "table" / "captions.csv", captions(folder / "table"))
    for path in (folder / "table" / "pictures").iterdir():
        Image.open(path).resize((SIZE, SIZE)).save(path)
    return folder / "table"


def source(folder: Path, weights: Path, **options: Any) -> TupleSource:
    return read(folder, {"image": modality(weights, **options), "words": WORDS})


def test_vectors_are_those_of_a_direct_forward(tmp_path: Path) -> None:
    """Of a file of either kind, whose last layer learned other classes, and without counters of batches, as older ones are."""
    own, folder = model(num_classes=7), table(tmp_path)
    state = {key: value for key, value in own.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "own.pth")
    save_file(state, tmp_path / "own.safetensors")
    found = source(folder, tmp_path / "own.pth").splits["val"].items["image"]
    names = sorted((folder / "pictures").iterdir())
    shown = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in names])
    own.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = own((shown / 255 - MEAN) / STD)
    places = [torch.cdist(one[None], expected).argmin().item() for one in found.values]
    assert len(set(places)) == len(places) == 4
    assert torch.allclose(found.values, expected[places], atol=1e-5)
    again = source(folder, tmp_path / "own.safetensors").splits["val"].items["image"]
    assert torch.allclose(again.values, found.values, atol=1e-6)


def test_the_digest_is_that_of_pictures_and_weights(tmp_path: Path) -> None:
    """Not that of rounded vectors."""
    folder = table(tmp_path)
    torch.save(model().state_dict(), tmp_path / "a.pth")
    before = source(folder, tmp_path / "a.pth")
    assert source(folder, tmp_path / "a.pth").sha256 == before.sha256
    assert source(folder, tmp_path / "a.pth", size=64).sha256 != before.sha256
    changed = {key: value + (key == "conv1.weight") for key, value in model().state_dict().items()}
    torch.save(changed, tmp_path / "a.pth")
    assert source(folder, tmp_path / "a.pth").sha256 != before.sha256


def nothing(path: Path) -> None:
    """No file."""


def foreign(path: Path) -> None:
    torch.save(model("resnet34").state_dict(), path)


def lacking(path: Path) -> None:
    torch.save({key: value for key, value in model().state_dict().items() if key != "conv1.weight"}, path)


def wrong_shape(path: Path) -> None:
    torch.save(model().state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)


def whole_checkpoint(path: Path) -> None:
    torch.save({"epoch": 3, "model": model().state_dict()}, path)


def words(path: Path) -> None:
    path.write_bytes(b"no weights")


WRONG: list[tuple[Callable[[Path], None], dict[str, Any], str]] = [
    (nothing, {}, r"the weights .*own\.pth are no file: put the model's state dict there"),
    (foreign, {}, r"own\.pth holds no weights of resnet18, as it has layer1\.2\.bn1\.bias, which that has not: name the model"),
    (lacking, {}, r"own\.pth holds no weights of resnet18, as it lacks conv1\.weight: name the model"),
    (wrong_shape, {}, r"as it has conv1\.weight of 64x1x7x7 instead of 64x3x7x7: name the model"),
    (whole_checkpoint, {}, r"own\.pth holds no state dict: save one with torch\.save"),
    (words, {}, r"own\.pth can't be read as a state dict \(.*\): save it with torch\.save"),
    (
        words,
        {"encoder": "resnet81"},
        r"torchvision has no classification model 'resnet81': choose one of resnet18.*transformers",
    ),
    (words, {"encoder": "squeezenet1_1"}, r"squeezenet1_1 does not end in a linear layer"),
]


@pytest.mark.parametrize(("make", "options", "sentence"), WRONG)
def test_weights_that_do_not_fit(tmp_path: Path, make: Callable[[Path], None], options: dict[str, Any], sentence: str) -> None:
    make(tmp_path / "own.pth")
    with pytest.raises(DataError, match=rf"prepare\.mine: .*{sentence}") as error:
        source(table(tmp_path), tmp_path / "own.pth", **options)
    assert "\n" not in str(error.value)


def test_a_model_of_one_size_says_so(tmp_path: Path) -> None:
    torch.save(model("vit_b_32").state_dict(), tmp_path / "own.pth")
    with pytest.raises(DataError, match=r"vit_b_32 can't read pictures of 32 pixels .*: leave size out, which is 224 then"):
        source(table(tmp_path), tmp_path / "own.pth", encoder="vit_b_32")


def test_texts_take_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(DataError, match=rf"holds no {name}: name a folder with config\.json, model\.safetensors and"):
            of_texts(tmp_path)
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match="the encoder transformers takes the package transformers: install it with"):
        of_texts(tmp_path)


def of_texts(folder: Path) -> frozen.Encoder:
    return frozen.encoder(FeaturesModality(kind="features", encoder="transformers", weights=str(folder), tokens=6))


HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
with_transformers = pytest.mark.skipif(not HAS_TRANSFORMERS, reason="the extra [encoders] is not installed")


def write_bert(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model, a small one with random weights and words of its own, in Hugging Face's layout."""
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "##s", "in", "grass"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **sizes)).eval()
    bert.save_pretrained(folder)
    return tokenizer, bert


@with_transformers
def test_a_text_model_of_the_hub(tmp_path: Path) -> None:
    """As by a direct forward of each text alone; damage is told."""
    tokenizer, bert = write_bert(tmp_path)
    texts = ["A dog runs in grass", "a cat", "dogs"] * 30
    items = RawItems(texts, range(len(texts)))
    found = frozen.vectors(items, of_texts(tmp_path), "texts")
    with torch.no_grad():
        alone = [tokenizer(one, truncation=True, max_length=6, return_tensors="pt") for one in texts[:3]]
        expected = torch.cat([bert(**one).last_hidden_state[:, 0] for one in alone])
    assert torch.allclose(found, expected.repeat(30, 1), atol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(DataError, match=r"model\.safetensors lacks encoder\.layer\.2\..* of the model in config\.json"):
        of_texts(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"can't be read as a text model .*: save model and tokenizer there"):
        of_texts(tmp_path)


def unlike_bert(folder: Path, kind: str, config: Any) -> None:
    """A model of another kind, random and small, beside a tokenizer that knows no more words than it."""
    import transformers

    write_bert(folder)
    getattr(transformers, kind)(config).save_pretrained(folder)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def of_pictures(folder: Path) -> None:
    from transformers import ViTConfig

    unlike_bert(folder, "ViTModel", ViTConfig(**SMALL, image_size=32, patch_size=16))


def of_both(folder: Path) -> None:
    from transformers import CLIPConfig

    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    unlike_bert(folder, "CLIPModel", CLIPConfig(text_config={**SMALL, "vocab_size": 12}, vision_config=vision))


def from_left_to_right(folder: Path) -> None:
    from transformers import CLIPTextConfig

    unlike_bert(folder, "CLIPTextModel", CLIPTextConfig(**SMALL, vocab_size=12))


def that_writes(folder: Path) -> None:
    from transformers import T5Config

    unlike_bert(folder, "T5Model", T5Config(vocab_size=12, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def of_fewer_words(folder: Path) -> None:
    from transformers import BertConfig

    unlike_bert(folder, "BertModel", BertConfig(**SMALL, vocab_size=5))


def of_fewer_places(folder: Path) -> None:
    from transformers import BertConfig

    unlike_bert(folder, "BertModel", BertConfig(**SMALL, vocab_size=12, max_position_embeddings=4))


def without_tokenizer(folder: Path) -> None:
    write_bert(folder)
    for path in (*folder.glob("*token*"), folder / "vocab.txt"):
        path.unlink(missing_ok=True)


def with_another_configuration(folder: Path) -> None:
    write_bert(folder)
    (folder / "config.json").write_text("[]")


@with_transformers
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        *(
            (
                spoil,
                r"can't be read as a text model with its tokenizer \(.+\): take one that reads texts alone, as BERT does, and",
            )
            for spoil in (of_pictures, of_both, that_writes, of_fewer_words, of_fewer_places)
        ),
        (from_left_to_right, r"makes one vector of different texts \(a and a a a\): take a model whose first token reads all"),
        (without_tokenizer, "holds no tokenizer: name a folder with config.json, model.safetensors and a tokenizer"),
        (with_another_configuration, r"can't be read as a text model \(.+\): save model and tokenizer there"),
    ],
)
def test_a_model_that_can_not_encode_texts(spoil: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(DataError, match=sentence):
        frozen.vectors(RawItems(["a dog runs in grass"], [0]), of_texts(tmp_path), "texts")


@with_transformers
def test_texts_as_vectors_keep_their_words(tmp_path: Path) -> None:
    """So that pages and exports show the nearest real one; networks read them with mean 0 and deviation 1."""
    (tmp_path / "bert").mkdir()
    write_bert(tmp_path / "bert")
    raw = tuples.params()
    own = {"kind": "features", "encoder": "transformers", "weights": str(tmp_path / "bert"), "column": "caption"}
    raw["prepare"] = {
        "mine": {"source": str(table(tmp_path)), "modalities": {"image": {"kind": "image", "size": 8}, "text": own}}
    }
    raw["networks"]["both"]["encoders"]["text"] = {"family": "Linear"}
    for entry in (*raw["experts"].values(), *raw["runs"].values()):
        entry["dataset"] = "mine"
    with made(tmp_path, raw) as params:
        real = STORE.load_tuples("mine", "train").items["text"]
        assert real.values.shape == (24, 16)
        read_by_networks = STORE.load_real("mine", "train")[3]
        assert read_by_networks.mean().abs() < 1e-5
        assert (read_by_networks.std(correction=0) - 1).abs() < 1e-5
        shown = shown_of(STORE, resolved.run(params, "random")).tuples
        assert {cell.text for _, cell in shown} <= set(real.texts)


def test_pictures_as_vectors_go_through_all_stages(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "own.pth")
    raw = tuples.params()
    own = {"image": modality(tmp_path / "own.pth"), "text": {**WORDS, "length": 8}}
    raw["prepare"] = {"mine": {"source": str(table(tmp_path)), "modalities": own}}
    raw["networks"]["both"]["encoders"]["image"] = {"family": "Linear"}
    for entry in (*raw["experts"].values(), *raw["runs"].values()):
        entry["dataset"] = "mine"
    with made(tmp_path, raw) as params:
        statistics = STORE.load_statistics("mine")
        assert isinstance(statistics, TupleStatistics)
        assert dict(statistics.kinds) == {"image": "vector", "text": "text"}
        assert statistics.shape.sizes == (512, 32)
        assert STORE.load_synthetic("proxy").pixels.shape == (6, 544)
        assert resolved.run(params, "proxy").dataset.tuples


def test_features_are_read_by_projections(tmp_path: Path) -> None:
    raw = tuples.params()
    raw["prepare"]["digits-seen-written"]["modalities"]["image"] = modality(tmp_path / "own.pth")
    with pytest.raises(UserError, match="has the family ConvNet for image, which is of kind features: choose from Linear, MLP"):
        parse(raw)
