"""Train fresh students on the synthetic images beside this script, and test them on real ones.

    python train_on_it.py --test test.npz --students 5

test.npz holds `images` (N, C, H, W), (N, H, W, C) or (N, H, W), reals from 0 to 1 or integers from 0 to --pixel-max, of the
size of the synthetic ones, and `labels` (N,) in the order of the classes in set.json. Each student is a fresh network.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.exchange.templates.read_safetensors import read

HERE = Path(__file__).parent
KINDS = {
    "|u1": torch.uint8,
    "<i2": torch.int16,
    "<i4": torch.int32,
    "<i8": torch.int64,
    "<f4": torch.float32,
    "<f8": torch.float64,
}
WHITE = 255  # of integers, where the command line names no other
SLACK = 0.01  # by which resized test images may go beyond black and white


# -- the network


def convnet(spec: dict[str, Any], channels: int, size: int, classes: int) -> nn.Sequential:
    """Blocks of convolution, norm, activation and pooling, then one linear layer; 28x28 is padded to 32x32."""
    width, side, layers = spec["width"], 32 if size == 28 else size, list[nn.Module]()
    groups = {"instance": width, "layer": 1, "group": 4}
    activations = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
    for block in range(spec["depth"]):
        layers.append(nn.Conv2d(channels if block == 0 else width, width, 3, padding=3 if block == 0 and size == 28 else 1))
        if spec["norm"] != "none":
            layers.append(nn.BatchNorm2d(width) if spec["norm"] == "batch" else nn.GroupNorm(groups[spec["norm"]], width))
        layers.append(activations[spec["activation"]]())
        if spec["pooling"] != "none":
            layers.append({"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[spec["pooling"]](2))
            side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, classes))


# -- differentiable siamese augmentation (arXiv 2102.08259): one kind a batch, random numbers of its own for each image


def color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation, contrast."""
    images = images + u[0] - 0.5
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * 2 * u[1] + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (u[2] + 0.5) + mean


def crop(images: Tensor, u: Tensor) -> Tensor:
    """A shift of up to an eighth of the side, zeros coming in."""
    side = images.shape[-1]
    pad = int(side * 0.125 + 0.5)
    rows, columns = ((u[i] * (2 * pad + 1)).long().flatten().tolist() for i in (0, 1))
    padded = F.pad(images, [pad] * 4)
    cuts = [one[:, r : r + side, c : c + side] for one, r, c in zip(padded, rows, columns, strict=True)]
    return torch.stack(cuts)


def cutout(images: Tensor, u: Tensor) -> Tensor:
    """Zeros in a square of half the side."""
    side = images.shape[-1]
    size = int(side * 0.5 + 0.5)
    place = torch.arange(side, device=images.device)
    inside = []
    for i, axis in ((0, place[:, None]), (1, place)):
        start = (u[i] * (side + 1 - size % 2)).floor() - size // 2
        inside.append((axis >= start) & (axis < start + size))
    return images * ~(inside[0] & inside[1])


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Left and right, for half of the images."""
    return torch.where(u[0] < 0.5, images.flip(-1), images)


def scale(images: Tensor, u: Tensor) -> Tensor:
    """Each axis by a factor of its own between 1 / 1.2 and 1.2."""
    x, y = (u[:2].flatten(1) * (1.2 - 1 / 1.2) + 1 / 1.2).unbind()
    return resampled(images, (x, 0 * x, 0 * x, 0 * x, y, 0 * x))


def rotate(images: Tensor, u: Tensor) -> Tensor:
    """By up to 15 degrees."""
    angle = (u[0].flatten() - 0.5) * 30 * math.pi / 180
    return resampled(images, (angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle))


def resampled(images: Tensor, entries: tuple[Tensor, ...]) -> Tensor:
    """By a matrix (2, 3) for each image, zeros outside."""
    grid = F.affine_grid(torch.stack(entries, 1).view(-1, 2, 3), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


AUGMENTATIONS = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def augmented(images: Tensor, kinds: list[str]) -> Tensor:
    if not kinds:
        return images
    uniforms = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    return AUGMENTATIONS[kinds[int(torch.randint(len(kinds), ()))]](images, uniforms)


# -- training and testing


def trained(
    model: nn.Module, images: Tensor, labels: Tensor, lr: float, protocol: dict[str, Any], test: tuple[Tensor, Tensor]
) -> float:
    """Accuracy of a student after its training: of the last epoch or, where the protocol says so, the best tested one."""
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=protocol["momentum"], weight_decay=protocol["weight_decay"])
    reached = 0.0
    for epoch in range(1, protocol["epochs"] + 1):
        if epoch == protocol["epochs"] // 2 + 2:
            optimiser.param_groups[0]["lr"] *= protocol["lr_drop_factor"]
        model.train()
        for index in torch.randperm(len(images), device=images.device).split(protocol["batch_size"]):
            optimiser.zero_grad()
            logits = model(augmented(images[index], protocol["augmentation"]))
            F.cross_entropy(logits, labels[index]).backward()
            optimiser.step()
        if epoch == protocol["epochs"] or (protocol["score"] == "best_test" and epoch % protocol["test_every"] == 0):
            found = accuracy(model, *test)
            reached = max(reached, found) if protocol["score"] == "best_test" else found
    return reached


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    predicted = torch.cat([model(part).argmax(1) for part in images.split(512)])
    return (predicted == labels).double().mean().item()


# -- real images


def arrays(path: Path) -> dict[str, Tensor]:
    """What an .npz file holds; numpy itself is not needed."""
    found = {}
    if not zipfile.is_zipfile(path):
        sys.exit(f"{path} is not there, or no .npz file: write it with numpy.savez")
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            data = file.read(name)
            begin = 10 if data[6] == 1 else 12  # of the header, after the format's version and the header's length
            end = begin + int.from_bytes(data[8:begin], "little")
            about = ast.literal_eval(data[begin:end].decode())
            if about["fortran_order"] or about["descr"] not in KINDS:
                sys.exit(
                    f"{path}: {name} is of type {about['descr']}, or not in C order: save it as {', '.join(KINDS)}, in C order"
                )
            kind = KINDS[about["descr"]]
            flat = torch.frombuffer(bytearray(data[end:]), dtype=kind) if data[end:] else torch.empty(0, dtype=kind)
            found[name.removesuffix(".npy")] = flat.reshape(about["shape"])
    return found


def pixels_of(images: Tensor, like: tuple[int, ...], pixel_max: float) -> Tensor:
    """Pixels (N, C, H, W) from 0 to 1 of images in any of the forms; `like` is (C, H, W)."""
    channels, height, width = like
    if images.shape[1:] == (height, width, channels):
        images = images.permute(0, 3, 1, 2)
    elif images.dim() == 3:
        images = images.unsqueeze(1)
    if images.shape[1:] != like:
        sys.exit(f"the test images are of shape {tuple(images.shape[1:])}, the synthetic ones of {like}: bring them to that")
    return images.float() if images.is_floating_point() else images.float() / pixel_max


def tested(path: Path, like: tuple[int, ...], classes: int, pixel_max: float | None) -> tuple[Tensor, Tensor]:
    """Pixels and labels of the test file. What would only make the accuracy wrong ends the script too."""
    real = arrays(path)
    if not {"images", "labels"} <= real.keys():
        sys.exit(f"{path} holds {', '.join(real) or 'nothing'}: it takes `images` and `labels`")
    images, labels = real["images"], real["labels"].long()
    pixels = pixels_of(images, like, pixel_max or WHITE)
    if labels.shape != pixels.shape[:1] or not len(labels):
        sys.exit(f"{path} has {len(pixels)} images and labels of shape {tuple(labels.shape)}: give one label for each image")
    first, last = int(labels.min()), int(labels.max())
    if first < 0 or last >= classes:
        sys.exit(
            f"the labels go from {first} to {last}, the classes in set.json from 0 to {classes - 1}: number them like these"
        )
    black, white = pixels.min().item(), pixels.max().item()
    if not (black >= -SLACK and white <= 1 + SLACK):
        sys.exit(
            f"the test images go from {black:g} to {white:g}, where 0 is black and 1 white: bring reals to that, "
            "not normalised, and name the white of integers with --pixel-max"
        )
    if pixel_max is None and not images.is_floating_point() and white < 0.5:
        sys.exit(
            f"the test images are integers up to {int(images.max())}, all but black where {WHITE} is white: name their white "
            f"with --pixel-max, {WHITE} if it is that"
        )
    return pixels, labels


def space(card: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """From pixels to what networks read."""
    if card["whitening"] != "none":
        found = torch.load(HERE / "space.pt", weights_only=True)
        return lambda pixels: ((pixels.flatten(1) - found["mean"]) @ found["matrix"]).view_as(pixels)
    mean, std = (torch.tensor(card["dataset"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return lambda pixels: (pixels - mean) / std


def positive(text: str) -> int:
    """A count of the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def brightest(text: str) -> float:
    """The brightest pixel of the command line."""
    try:
        if (found := float(text)) > 0 and found < float("inf"):
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")


def device(text: str) -> torch.device:
    """That of the command line, which must take tensors."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise argparse.ArgumentTypeError(f"'{text}' is no device of this machine: take cpu") from error


def told() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True, help="the .npz file")
    parser.add_argument("--students", type=positive, default=5)
    parser.add_argument("--epochs", type=positive, help="instead of the protocol's")
    parser.add_argument("--pixel-max", type=brightest, help=f"the white of integer test images, if not {WHITE}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    asked, card = told(), json.loads((HERE / "set.json").read_text(encoding="utf-8"))
    normalise, protocol = space(card), card["evaluation"] | ({"epochs": asked.epochs} if asked.epochs else {})
    images, labels = (tensor.to(asked.device) for tensor in read(HERE, normalise))
    shape, classes = tuple(images.shape[1:]), len(card["dataset"]["classes"])
    pixels, real = tested(asked.test, shape, classes, asked.pixel_max)
    test = normalise(pixels).to(asked.device), real.to(asked.device)
    found = []
    for student in range(asked.students):
        torch.manual_seed(asked.seed + student)
        model = convnet(card["network"], shape[0], shape[1], classes).to(asked.device)
        found.append(100 * trained(model, images, labels, card["syn_lr"], protocol, test))
        print(f"student {student + 1}: {found[-1]:.1f} %", flush=True)
    std = torch.tensor(found).std().item() if len(found) > 1 else 0.0
    print(f"test accuracy {sum(found) / len(found):.1f} ± {std:.1f} % over {len(found)} students")


if __name__ == "__main__":
    main()
