"""Tables of all commands: at 20, 40 and 80 columns every cell's text is there whole once line breaks are taken out."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna import create_study, create_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution
from rich import box
from rich.console import Console
from rich.table import Table

from src.bench import tables as bench
from src.maths.scores_beyond import Estimate
from src.maths.significance import Difference
from src.pages.page import Accuracy, Result
from src.pages.standings import Standing, Standings
from src.settings import resolved
from src.settings.datasets import Dataset
from src.settings.params import Params, parse
from src.sources.inspection import Inspection
from src.sources.reading import Source
from src.stages import clean, evaluate, init, plan, plan_steps, prepare, presets, report
from src.store import checkpoints
from src.store.cost import Cost
from src.studies import ablate, compare, findings, methods, study
from src.studies.study import Study
from src.studies.usefulness import Experts
from tests.small_run import STORE

LONG = "cifar10-ipc10-ast-with-every-part-of-it"
WIDTHS = (20, 40, 80)


def squeezed(text: str) -> str:
    return "".join(text.split())


def shown(table: Table, width: int) -> str:
    """The table as it is checked_prints, its columns parted by '|' alone."""
    table.box = box.ASCII if table.box is not None else None
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def check_whole(table: Table) -> None:
    """Checks that no letter of the table is lost at any width."""
    columns = [squeezed("".join([str(column.header), *map(str, column.cells)])) for column in table.columns]
    for width in WIDTHS:
        text = shown(table, width)
        lines = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= {"|", "-", "+"}]
        if lines:
            cells = zip(*(line[1:-1].split("|") for line in lines), strict=True)
            assert [squeezed("".join(column)) for column in cells] == columns
        else:  # a row is some lines of its own
            every = [str(cell) for column in table.columns for cell in (column.header, *column.cells)]
            counted = Counter(squeezed(cell) for cell in every if cell)
            assert all(squeezed(text).count(cell) >= times for cell, times in counted.items())
        assert max(map(len, text.splitlines())) <= width


@pytest.fixture
def checked_prints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Table]]:
    """Tables that a command prints, which are whole."""
    found: list[Table] = []
    kept = Console.print

    def note(self: Console, *objects: Any, **options: Any) -> None:
        found.extend(one for one in objects if isinstance(one, Table))
        kept(self, *objects, **options)

    monkeypatch.setattr(Console, "print", note)
    yield found
    monkeypatch.undo()
    assert found
    for one in found:
        check_whole(one)


def test_compare() -> None:
    lists = {"distill.augmentation": "color crop cutout flip scale rotate", "distill.initialisation": "representative"}
    none = dict.fromkeys(lists, "none")
    accuracies = {"val": (0.911, 0.92), "test": (0.9, 0.91)}
    costs: dict[str, Cost | None] = dict.fromkeys(compare.WORK)
    found = [compare.Compared(f"{LONG}-{n}", "d", [lists, none][n % 2], accuracies, costs, BEYOND) for n in range(3)]
    check_whole(compare.table(found[:2]))
    check_whole(compare.table(found))
    check_whole(compare.table(found * 5))


def test_a_table_that_fits_is_a_table() -> None:
    accuracies: dict[str, tuple[float, ...]] = {"val": (0.5, 0.5), "test": (0.5, 0.5)}
    found = [compare.Compared(name, "d", {}, accuracies, dict.fromkeys(compare.WORK), {}) for name in "ab"]
    lines = shown(compare.table(found), 80).splitlines()
    assert "|                  | a          | b          |" in lines
    assert len({len(line) for line in lines}) == 1


def test_tune(tmp_path: Path) -> None:
    space = {"distill.augmentation": CategoricalDistribution(("[flip, crop]", "color crop cutout flip")),
             "distill.lr_init": FloatDistribution(1e-6, 1.0)}  # fmt: skip
    plan = Study(tmp_path, "s", space, dict, 0, prunes=False)
    opened = create_study(direction="maximize")
    for number, chosen in enumerate(("[flip, crop]", "color crop cutout flip", "[flip, crop]")):
        params = {"distill.augmentation": chosen, "distill.lr_init": 1.25e-5}
        opened.add_trial(
            create_trial(value=0.9 + number / 100, params=params, distributions=space, user_attrs={"accuracies": [0.9, 0.91]})
        )
    table = findings._table(study.finished(opened), plan, {"distill.lr_init": 0.75})
    assert "[flip,crop]" in squeezed(shown(table, 80))
    check_whole(table)


def test_ablate(checked_prints: list[Table]) -> None:
    experts = (Experts(0.1, 0.01, 0.5),) * 2
    seeds = {"val": (0.7, 0.8), "test": (0.7, 0.8)}
    rows = [
        ablate.Outcome(ablate.WHOLE, (1, 2, 3, 4, 5, 6), seeds, experts, None),
        ablate.Outcome("without representative initialisation", (1, 2), seeds, experts, ablate.WHOLE, -0.1, 0.001),
        ablate.Outcome(ablate.NONE, (), {}, (), ablate.WHOLE, problem="it diverged [at once]"),
    ]
    ablate._show(rows, LONG, 2, "accuracy")


def test_ablate_says_a_problem_with_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    ablate._show([ablate.Outcome(ablate.NONE, (), {}, (), None, problem="it diverged [at once]")], LONG, 2, "accuracy")
    assert f"{ablate.NONE} failed: it diverged [at once]" in capsys.readouterr().out


def test_methods(checked_prints: list[Table]) -> None:
    seeds = {"val": (0.7, 0.8), "test": (0.7, 0.8)}
    rows = [
        methods.Row(f"{LONG}-mtt", 30, {}, seeds, 5e4),
        methods.Row(f"{LONG}-ast", 30, {}, seeds, 5e4, Difference(-0.1, 0.001)),
        methods.Row(f"{LONG}-att", 30, {}, {}, 5e4, problem="it diverged [at once]"),
    ]
    methods._show(rows, LONG, 2, f"{LONG}-mtt", "mean recall")


@pytest.mark.parametrize("kind", ["matching", "experts", "evaluate"])
def test_bench(kind: str) -> None:
    sides = {"plain": 12345.678, "engine": 0.000123}
    found: dict[str, Any] = {side: {"seconds_per_iteration": 1.25, "peak_memory_mib": 1e6, "seconds": 2.0} for side in sides}
    found |= {"gflops": sides, "share_of_peak": sides, "peak_gflops": {"float32": 1.0}, "setting": {"precision": "float32"}}
    found |= {"gradient_error": 1e-7, "plain_gradient_error": 1e-7, "gradient_error_steps": 3, "ratio": 1.5, "processes": 2}
    found |= {name: {**sides, "ratio": 1.5, "processes": 16} for name in ("with_penalty", "without_penalty")}
    check_whole(getattr(bench, kind)(found))


def test_plan(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = parse(valid_params)
    prepare.run(STORE, resolved.data_set(params, "digits"))
    run = replace(resolved.run(params, "ten"), name=LONG)
    subject = plan_steps.Subject(run, STORE.load_statistics("digits"), torch.device("cpu"))
    check_whole(plan._table(subject, plan.Plan(10**9, "eager", 1.5, 2.5, 1e5, 1e6, 0.5, 1e6, 1e7, 1e5, 1e4)))


def test_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoints.folder() / "evaluate" / f"{LONG}@ConvNetD3W128" / "0123456789abcdef-000.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1234567))
    check_whole(clean._table([clean._leftover(path, {})]))


def result(name: str) -> Result:
    accuracy = Accuracy(0.9123, 0.0123)
    given = (name, "digits", 10, 100, 0.1, "ast", "random", True, (1,), accuracy, accuracy, (0.9,))
    return Result(*given, selected=True, colour=1, gain=0.123)


BEYOND = {name: Estimate(0.12345, 0.01) for name in ("HLR", "IOR", "LRS", "ARS")}


def test_report(checked_prints: list[Table]) -> None:
    standing = Standing(BEYOND, (LONG, "short"))
    content = SimpleNamespace(results=[result(LONG), result("short")], standings=Standings({LONG: standing, "short": standing}))
    report._show("A [long] title of a report that is checked_prints above its table", content)  # type: ignore[arg-type]
    assert "[long]" in shown(checked_prints[0], 80)


def test_evaluate(checked_prints: list[Table], valid_params: dict[str, Any]) -> None:
    scores = {f"{split}_accuracy_{kind}": 0.91234 for split in ("val", "test") for kind in ("mean", "std")}
    params: Params = parse(valid_params)
    evaluate._show(resolved.run(params, "one"), {"AGeneralisedConvNetOfManyChannels": scores, "D2": scores})


def test_init(checked_prints: list[Table]) -> None:
    names = ("a class [of] images whose name goes on for more than a line", "b")
    counts = {split: dict.fromkeys(names, 123456) for split in ("train", "val", "test")}
    found = Inspection(counts, Counter({(32, 32): 5}), Counter({3: 5}), (), "0" * 64, Source(names, 255, {}, {}, {}, {}, ()))
    init._show(Dataset(source="a/long/path/of/[many]/folders/to/images.zip", size=32), found)
    assert "[of]" in shown(checked_prints[0], 80)
    assert "[many]" in squeezed(shown(checked_prints[0], 80))


def test_presets(checked_prints: list[Table], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "FILE_WIDTH", 40)
    presets.show_all(None, None)
