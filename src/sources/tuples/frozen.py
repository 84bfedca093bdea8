"""Frozen encoders: pictures and texts as the vectors that a trained network makes of them, whose weights lie on disk.

Pictures are read by a classification model of torchvision: a vector is what its last linear layer reads. Texts are read by a
model in Hugging Face's layout: a vector is what its last layer has for the first token, as MTT-VL takes BERT.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from src.ground.errors import ENCODERS, DataError, installing
from src.process import progress
from src.settings.datasets import TRANSFORMERS, FeaturesModality, held
from src.sources.images import Shape
from src.sources.tuples import pictures
from src.sources.tuples.raw import RawItems
from src.store import files

CHUNK = 64  # items that are encoded at once
UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError)
COUNTED = "num_batches_tracked"  # of batch norm: older files have none, and nothing rests on it
PROBES = ("a", "a a a")  # texts whose vectors differ, unless the first token is read without the others
HEADS = ("pooler.",)  # parts of text models that read what is taken here

Encode = Callable[[RawItems, slice], Tensor]  # of some of the items (n, F)


@dataclass(frozen=True)
class Encoder:
    """A network with its weights."""

    settings: FeaturesModality
    encode: Encode
    weights: str  # digest


def encoder(settings: FeaturesModality) -> Encoder:
    """The one that settings name. Raises DataError where its weights are missing, damaged or of another one."""
    encode = _of_texts(settings) if held(settings) == "text" else _of_pictures(settings)
    return Encoder(settings, encode, files.digest(_path(settings)))


def vectors(raw: RawItems, own: Encoder, title: str) -> Tensor:
    """(n, F) of picture files or texts. Raises DataError where a picture is broken."""
    chunks = [slice(first, first + CHUNK) for first in range(0, len(raw.values), CHUNK)]
    found = []
    with torch.no_grad(), progress.progress(title, len(chunks)) as advance:
        for chunk in chunks:
            found.append(own.encode(raw, chunk))
            advance()
    return torch.cat(found).float().contiguous()


def digest(raw: RawItems, own: Encoder) -> str:
    """Of all that vectors are made from."""
    settings = own.settings.model_dump(mode="json", exclude={"column", "weights"})
    whole = hashlib.sha256(json.dumps([settings, own.weights]).encode())
    for value in raw.values:
        content = value if isinstance(value, bytes) else str(value).encode()
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


def _path(settings: FeaturesModality) -> Path:
    return Path(settings.weights).expanduser()


# -- torchvision


def _of_pictures(settings: FeaturesModality) -> Encode:
    model, published = _model(settings.encoder)
    mean, std = (torch.tensor(value)[:, None, None] for value in (published.mean, published.std))
    shape, read = Shape(3, settings.size or published.crop_size[0]), list[Tensor]()
    last = _filled(model, _path(settings), settings.encoder)
    last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    def encode(raw: RawItems, chunk: slice) -> Tensor:
        shown = pictures.decoded(raw.values[chunk], raw.names[chunk], shape)
        try:
            model((shown / 255 - mean) / std)
        except (AssertionError, RuntimeError) as error:
            usual = f"leave size out, which is {published.crop_size[0]} then"
            raise DataError(f"{settings.encoder} can't read pictures of {shape.size} pixels ({error}): {usual}") from None
        return read.pop()

    return encode


def _model(name: str) -> tuple[nn.Module, Any]:
    """A model of torchvision, and what its published weights want pictures to be like: mean, std, crop_size."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(get_close_matches(name, known, n=3, cutoff=0.5)) or "resnet18, vit_b_16 and others"
        raise DataError(f"torchvision has no classification model '{name}': choose one of {near}; texts take {TRANSFORMERS}")
    return models.get_model(name, weights=None).eval(), models.get_model_weights(name).DEFAULT.transforms()


def _filled(model: nn.Module, path: Path, name: str) -> nn.Module:
    """The last linear layer of a model that gets all but this from a file; it may have learned any classes."""
    linear = [(own, module) for own, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise DataError(f"{name} does not end in a linear layer, whose inputs are the vectors: choose another, as resnet18")
    called, last = linear[-1]
    found = {key: value for key, value in _state(path).items() if not _passed_over(key, called)}
    own = {key: value for key, value in model.state_dict().items() if not _passed_over(key, called)}
    foreign = _foreign(found, own)
    if foreign:
        raise DataError(f"{path} holds no weights of {name}, as it {foreign}: name the model whose weights these are")
    model.load_state_dict(found, strict=False)
    return last


def _foreign(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What of a file's tensors is not the model's; nothing where all fits."""
    lacks, more = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if lacks or more:
        return " and ".join([*(f"lacks {key}" for key in lacks[:1]), *(f"has {key}, which that has not" for key in more[:1])])
    wrong = (key for key in own if found[key].shape != own[key].shape)
    sizes = (f"has {key} of {_size(found[key])} instead of {_size(own[key])}" for key in wrong)
    return next(sizes, "")


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _passed_over(key: str, last: str) -> bool:
    return key.endswith(COUNTED) or key.rpartition(".")[0] == last


def _state(path: Path) -> Mapping[str, Tensor]:
    """Of a file."""
    if not path.is_file():
        raise DataError(f"the weights {path} are no file: put the model's state dict there, or name where it is")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _unreadable(path, "a state dict", error, "save it with torch.save(model.state_dict(), PATH)") from None
    named = isinstance(found, dict) and all(isinstance(one, str) for one in found)
    if not named or not all(isinstance(one, Tensor) for one in found.values()):
        raise DataError(f"{path} holds no state dict: save one with torch.save(model.state_dict(), PATH)")
    return dict(found)


def _unreadable(path: Path, what: str, error: BaseException, remedy: str) -> DataError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return DataError(f"{path} can't be read as {what} ({reason}): {remedy}")


# -- Hugging Face


def _of_texts(settings: FeaturesModality) -> Encode:
    folder = _path(settings)
    absent = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if absent:
        raise _lacking(folder, absent[0])
    tokenizer, model = _loaded(folder, _transformers())

    def encode(raw: RawItems, chunk: slice) -> Tensor:
        told = {"padding": True, "truncation": True, "max_length": settings.tokens, "return_tensors": "pt"}
        try:
            first: Tensor = model(**tokenizer([str(text) for text in raw.values[chunk]], **told)).last_hidden_state[:, 0]
        except Exception as error:  # one that is not for texts alone fails in as many ways as there are models
            remedy = "take one that reads texts alone, as BERT does, and no more tokens than it has places for"
            raise _unreadable(folder, "a text model with its tokenizer", error, remedy) from None
        return first

    with torch.no_grad():
        one, other = encode(RawItems(PROBES, ()), slice(None))
    if torch.allclose(one, other, atol=1e-6):
        text = f"{folder} makes one vector of different texts ({' and '.join(PROBES)})"
        raise DataError(f"{text}: take a model whose first token reads all others, as BERT's does, or raise tokens")
    return encode


def _lacking(folder: Path, what: str) -> DataError:
    return DataError(f"{folder} holds no {what}: name a folder with config.json, model.safetensors and a tokenizer")


def _transformers() -> Any:
    """The package, which most installations lack."""
    try:
        found = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise DataError(f"the encoder {TRANSFORMERS} takes the package {error.name}: {installing(ENCODERS)}") from None
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


def _loaded(folder: Path, package: Any) -> tuple[Any, Any]:
    """Tokenizer and model, all of whose weights are in the folder."""
    try:
        tokenizer = package.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, told = package.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # of as many kinds as models and tokenizers have ways to be read
        raise _unreadable(folder, "a text model", error, "save model and tokenizer there with save_pretrained") from None
    if len(tokenizer) <= len({*tokenizer.all_special_ids}):  # it is made up where there is none
        raise _lacking(folder, "tokenizer")
    lacks = sorted(key for key in told["missing_keys"] if not key.startswith(HEADS))
    if lacks:
        raise DataError(
            f"{folder / 'model.safetensors'} lacks {lacks[0]} of the model in config.json: bring them from one source"
        )
    return tokenizer, model.eval()
