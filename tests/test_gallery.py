"""The gallery: frames of the right number, size and pixels, a page that opens by itself, refusals in sentences."""

from __future__ import annotations

import base64
import io
import itertools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src import cli
from src.ground.errors import ArtifactError, UserError
from src.maths.pixels import Normalisation
from src.pages import animation, gallery
from src.pages.animation import GAP, LABEL, Moments
from src.settings import resolved
from src.settings.params import Params, parse
from src.settings.resolved import Pipeline
from src.stages import gallery as stage
from src.stages.records import prepared_record, synthetic_record
from src.store import files
from src.store.values import Snapshots, Split, Statistics, SyntheticSet
from tests.small_run import STORE

CLASSES = ("zebra", "a", "an uncommonly long name")
SIDE, SCALE = 4, 12


def images(moments: int, ipc: int = 1, classes: int = 3) -> torch.Tensor:
    """(moments, S, 1, 4, 4), each of another grey, some outside [0, 1]."""
    levels = torch.linspace(-0.2, 1.2, moments * ipc * classes).view(moments, -1, 1, 1, 1)
    return levels.expand(-1, -1, 1, SIDE, SIDE).contiguous()


def run_of(name: str, iterations: tuple[int, ...], ipc: int = 1, classes: int = 3) -> Moments:
    names = tuple((CLASSES * classes)[:classes])
    labels = torch.arange(classes).repeat_interleave(ipc)
    return Moments(name, names, labels, iterations, images(len(iterations), ipc, classes))


def frames_of(path: Path) -> list[np.ndarray]:
    found = []
    with Image.open(path) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            found.append(np.asarray(picture.convert("RGB")))
    return found


def test_runs_are_aligned_by_the_share_of_their_way() -> None:
    slow, fast, still = run_of("slow", (0, 100, 200, 300)), run_of("fast", (0, 5, 10)), run_of("still", (0,))
    found = animation.shares([slow, fast, still], 6.0)
    assert found == pytest.approx([0, 1 / 3, 1 / 2, 2 / 3, 1], abs=1e-6)
    assert [[one.told(one.at(share)) for one in (slow, fast, still)] for share in found] == [
        ["iteration 0 of 300", "iteration 0 of 10", "not distilled"],
        ["iteration 100 of 300", "iteration 0 of 10", "not distilled"],
        ["iteration 100 of 300", "iteration 5 of 10", "not distilled"],
        ["iteration 200 of 300", "iteration 5 of 10", "not distilled"],
        ["iteration 300 of 300", "iteration 10 of 10", "not distilled"],
    ]


def test_every_moment_of_one_run_is_a_frame() -> None:
    for last in (7, 23, 300, 999):
        one = run_of("one", tuple(range(last + 1))[:: last // 6])
        if one.iterations[-1]:
            assert [one.at(share) for share in animation.shares([one], 60.0)] == list(range(len(one.iterations)))


def test_more_moments_than_the_eye_sees_are_thinned_and_keep_their_ends() -> None:
    found = animation.shares([run_of("long", tuple(range(1001)))], 2.0)
    assert len(found) == 2 * animation.PER_SECOND
    assert (found[0], found[-1]) == (0, 1)
    assert found == sorted(found)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_the_animation_has_its_frames_and_they_differ(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{suffix}"
    shown = [run_of("one", (0, 2, 4)), run_of("two", (0, 1))]
    assert animation.write(path, shown, 3.0, SCALE) == 3
    found = frames_of(path)
    assert len(found) == 3
    assert len({frame.shape for frame in found}) == 1
    assert all(not np.array_equal(first, second) for first, second in itertools.pairwise(found))
    with Image.open(path) as picture:
        assert picture.size == animation.frame(shown, 0.0, SCALE).size
        times = []
        for number in range(3):
            picture.seek(number)
            picture.load()
            times.append(picture.info["duration"])
    assert sum(times) == pytest.approx(3000, abs=60)
    assert times[-1] > times[0]


def test_pixels_are_the_images_own_and_cut_off(tmp_path: Path) -> None:
    one = run_of("one", (0, 4))
    for moment in (0, 1):
        picture = np.asarray(animation.panel(one, moment, SCALE))
        top = picture.shape[0] - GAP * 2 - SIDE * SCALE
        for place in range(3):
            left = place * (SIDE * SCALE + GAP)
            shown = picture[top : top + SIDE * SCALE, left : left + SIDE * SCALE]
            expected = round(float(one.pixels[moment, place].clamp(0, 1).mean()) * 255)
            assert (shown == expected).all()
    assert one.pixels.min() < 0
    assert one.pixels.max() > 1


def test_panels_are_as_large_at_every_moment_and_as_the_scale_says() -> None:
    one = run_of("x", (0, 5, 1_000_000))
    sizes = {animation.panel(one, moment, 30).size for moment in range(3)}
    assert len(sizes) == 1
    assert sizes.pop()[0] == 3 * (SIDE * 30 + GAP) - GAP
    taller = animation.panel(run_of("x", (0, 1), ipc=2), 0, 30).height - animation.panel(run_of("x", (0, 1)), 0, 30).height
    assert taller == SIDE * 30 + GAP


def test_large_sets_show_a_sheet() -> None:
    many, deep = run_of("many", (0, 1), classes=123), run_of("deep", (0, 1), ipc=50)
    assert [len(names) for names, _ in many.bands(0)] == [10] * 10
    assert {len(column) for _, columns in many.bands(0) for column in columns} == {1}
    assert [[len(column) for column in columns] for _, columns in deep.bands(0)] == [[10] * 3]
    few = run_of("few", (0, 1), ipc=3, classes=23)
    assert [len(names) for names, _ in few.bands(0)] == [10, 10, 3]
    assert few.rows == 1
    assert many.told(1) == "iteration 1 of 1, 100 of 123 classes"
    assert deep.told(0) == "iteration 0 of 1, 10 of 50 images per class"
    assert few.told(0) == "iteration 0 of 1, 1 of 3 images per class"
    assert animation.panel(many, 0, None).height > 10 * (animation.SIDE + LABEL)


def test_no_image_is_left_out_whose_soft_label_is_another_class() -> None:
    one, wide = run_of("one", (0, 1), ipc=10), run_of("wide", (0, 1), classes=12)
    one.labels[10:15], wide.labels[3] = 0, 5
    assert [[len(column) for column in columns] for _, columns in one.bands(0)] == [[15, 5, 10]]
    assert [len(column) for _, columns in wide.bands(0) for column in columns] == [1, 1, 1, 0, 1, 2, *[1] * 6]
    assert (one.told(0), wide.told(0)) == ("iteration 0 of 1", "iteration 0 of 1")
    reel = gallery._reel(wide, None)
    assert [sheet.rows for _, sheet in reel.strips] == [2, 2]
    assert all(animation.panel(run, 0, None).height for run in (one, wide))


def test_a_picture_too_large_is_a_sentence() -> None:
    with pytest.raises(UserError, match="a side may have 8,192: give a smaller --scale or fewer runs"):
        animation.frame([run_of("one", (0, 1), classes=10)], 0, 512)


def test_panels_stand_side_by_side_without_meeting() -> None:
    sizes = [(100, 20), (90, 200), (50, 50), (120, 60), (10, 10)]
    for columns in range(1, 6):
        places, (width, height) = animation._layout(sizes, columns)
        taken = np.zeros((height, width), dtype=int)
        for (left, top), (wide, high) in zip(places, sizes, strict=True):
            taken[top : top + high, left : left + wide] += 1
        assert taken.max() == 1
        assert taken.sum() == sum(wide * high for wide, high in sizes)


# -- the page


class Tags(HTMLParser):
    """Whether all that is opened is closed, in its order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file() -> None:
    text = gallery.html([run_of("one", (0, 3, 9)), run_of("still <b>", (0,))], "A & B", 4.0, None)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    places = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", text)
    assert all(place.startswith("data:") for place in places)
    assert not re.search(r"url\(|@import|<script|<iframe|http", text)
    assert "A &amp; B" in text
    assert "still &lt;b&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "prefers-reduced-motion: reduce" in text
    assert all(f"<div>iteration {n} of 9</div>" in text for n in (0, 3, 9))
    assert text.count("@keyframes") == 1  # what is not distilled stands still
    assert "roll-1 4.0s step-end infinite" in text


def test_the_roll_has_every_moment_and_stops_there() -> None:
    one = run_of("one", (0, 3, 9), ipc=2)
    reel = gallery._reel(one, None)
    (roll,) = reel.rolls
    picture = Image.open(io.BytesIO(base64.b64decode(roll.uri.partition(",")[2])))
    assert picture.size == (roll.width, 3 * roll.height)
    array = np.asarray(picture)
    for moment in range(3):
        shown = array[moment * roll.height : (moment + 1) * roll.height]
        assert shown[0, 0, 3] == shown[-1, 0, 3] == 0  # clear all around, so that none shows its neighbour
        assert shown[1, 0, 0] == round(float(one.pixels[moment, 0, 0, 0, 0].clamp(0, 1)) * 255)
    assert [way for _, way in reel.stops] == pytest.approx([0, 100 / 3, 200 / 3], abs=1e-3)
    assert [time for time, _ in reel.stops] == pytest.approx([0, 85 / 3, 85], abs=1e-3)


# -- the command


@pytest.fixture
def params(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Two distilled runs and a baseline, with all that the gallery reads."""
    monkeypatch.chdir(tmp_path)
    valid_params["distill"]["real"] = {"initialisation": "random", "iterations": 0}
    valid_params["runs"]["found"] = valid_params["runs"]["one"] | {"experts": None, "distill": {"method": "real"}}
    valid_params["runs"]["one"]["distill"]["iterations"] = 4
    files.write_json(Path("params.yaml"), valid_params)
    made = parse(valid_params)
    record = prepared_record(resolved.data_set(made, "digits"), "0")
    labels = torch.tensor([0, 1, 2])
    STORE.save_split("digits", "train", Split(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), labels), record)
    STORE.save_space("digits", Normalisation(torch.zeros(1), torch.ones(1)), record)
    counts = {"train": dict.fromkeys(CLASSES, 1)}
    STORE.save_statistics("digits", Statistics(CLASSES, 1, 4, 16, (0.5,), (0.25,), (0.5,), (0.25,), counts, "0", ()), record)
    for experts in made.experts:
        files.write_json(STORE.trajectories_folder(experts) / "000.safetensors", {})
    for name in made.runs:
        _make(made, name)
    return made


def _make(params: Params, name: str) -> None:
    ipc, iterations = int(params.runs[name].ipc), params.distillations[name].iterations
    record = synthetic_record(STORE, resolved.run(params, name))
    moments = torch.arange(0, iterations + 1, 2 if name == "one" else 1) if iterations else torch.zeros(0, dtype=torch.int64)
    shown = images(len(moments) or 1, ipc)
    labels = torch.arange(3).repeat_interleave(ipc)
    STORE.save_synthetic(name, SyntheticSet(shown[-1].clone(), labels, torch.tensor(0.02)), record)
    STORE.save_snapshots(name, Snapshots(moments, shown if iterations else torch.zeros(0)), record)


def pipeline(params: Params) -> Pipeline:
    return resolved.pipeline(params)


def command(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["src.cli", "gallery", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command_writes_what_the_suffix_says(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("one found --to a.webp --seconds 2 --scale 5", monkeypatch) == 0
    assert len(frames_of(Path("a.webp"))) == 3
    assert command("--to folder/b.GIF", monkeypatch) == 0
    assert len(frames_of(Path("folder/b.GIF"))) == 5  # thirds of ten and halves of one
    assert command("found --to still.gif", monkeypatch) == 0
    assert len(frames_of(Path("still.gif"))) == 1
    assert command("--to c.html", monkeypatch) == 0
    text = Path("c.html").read_text(encoding="utf-8")
    assert "<h2>one</h2>" in text
    assert "<h2>ten</h2>" in text
    assert "<h2>found</h2>" not in text  # not distilled, and not asked for
    assert not list(Path().rglob("*.tmp"))


def test_the_same_call_gives_the_same_bytes(params: Params) -> None:
    for suffix in ("webp", "gif", "html"):
        paths = [Path(f"{n}.{suffix}") for n in (1, 2)]
        for path in paths:
            stage.run(STORE, pipeline(params), ["one", "found"], path, 6.0, None)
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("one --to a.png", "a.png ends in none of .html, .webp, .gif: name a page or an animation by its suffix"),
        ("one --to a", "a ends in none of .html, .webp, .gif"),
        ("one one --to a.gif", "a run is named twice in one, one: name each once"),
        ("nothing --to a.gif", "no run is named 'nothing'"),
        ("one --to a.gif --scale 512", "the picture would have"),
        ("one --to folder.gif", "is a directory"),
    ],
)
def test_refusals(
    words: str, sentence: str, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.gif").mkdir()
    if "512" in words:
        monkeypatch.setattr(animation, "LONGEST", 1000)
    assert command(words, monkeypatch) > 0
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not Path("a.gif").exists()


def test_without_a_distilled_run_a_name_is_asked_for(params: Params) -> None:
    whole = pipeline(params)
    only = Pipeline(**{**vars(whole), "runs": {"found": whole.runs["found"]}})
    with pytest.raises(UserError, match=r"no run of params\.yaml is distilled"):
        stage.run(STORE, only, [], Path("a.gif"), 6.0, None)


def test_without_a_name_runs_that_are_not_distilled_yet_are_left_out(params: Params) -> None:
    STORE.synthetic_file("ten").unlink()
    stage.run(STORE, pipeline(params), [], Path("a.html"), 6.0, None)
    text = Path("a.html").read_text(encoding="utf-8")
    assert "<h2>one</h2>" in text
    assert "<h2>ten</h2>" not in text
    STORE.synthetic_file("one").unlink()
    with pytest.raises(ArtifactError, match=r"is missing: make it with `python -m src\.cli distill --run one`"):
        stage.run(STORE, pipeline(params), [], Path("a.html"), 6.0, None)


def test_images_of_other_settings_and_missing_ones_are_refused(params: Params, valid_params: dict[str, Any]) -> None:
    valid_params["runs"]["one"]["distill"]["lr_img"] = 7.0
    with pytest.raises(ArtifactError, match=r"lr_img was 100\.0, is 7\.0"):
        stage.run(STORE, pipeline(parse(valid_params)), ["one"], Path("a.gif"), 6.0, None)
    STORE.snapshots_file("ten").unlink()
    with pytest.raises(ArtifactError, match=r"is missing: make it with `python -m src\.cli distill --run ten`"):
        stage.run(STORE, pipeline(params), ["ten"], Path("a.gif"), 6.0, None)


def test_what_is_not_written_whole_is_not_there(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run(STORE, pipeline(params), ["found"], Path("a.gif"), 6.0, None)
    before = Path("a.gif").read_bytes()

    def fail(*about: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ArtifactError, match="can't be written"):
        stage.run(STORE, pipeline(params), ["one"], Path("a.gif"), 6.0, None)
    assert Path("a.gif").read_bytes() == before
