"""What a user may do wrong: each ends with one clear line and the right exit code, and nothing is overwritten."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import ROOT, Result
from tests.workflows.small import NUM_NODES, changed, recipe_data, write_graph, write_recipe

Command = Callable[..., Result]
Prepare = Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line, what lies in the folder before, and what must come of it."""

    arguments: str
    expected: str
    code: int = 1
    prepare: Prepare = lambda folder: None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def text(name: str, content: str | bytes) -> Prepare:
    return lambda folder: (
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def recipe(**places: Any) -> Prepare:
    def prepare(folder: Path) -> None:
        write_recipe(folder, **places)

    return prepare


def graph(**arrays: Any) -> Prepare:
    def prepare(folder: Path) -> None:
        write_graph(folder / "multiclass.npz", **arrays)
        write_recipe(folder)

    return prepare


def copy_of(name: str, *changes: Callable[[Path], None]) -> Prepare:
    """A copy of the finished run or its bundle, changed."""

    def prepare(folder: Path) -> None:
        shutil.copytree(folder / "finished" / name, folder / "it")
        for change in changes:
            change(folder / "it")

    return prepare


def both(*steps: Prepare) -> Prepare:
    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1]) and None


def one_class(folder: Path) -> None:
    """The valid nodes are all of one class."""
    path = write_graph(folder / "binary.npz", task="binary")
    arrays = dict(np.load(path))
    arrays["y"][arrays["valid_mask"]] = 0
    np.savez(path, **arrays)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_key(key: str) -> Callable[[Path], None]:
    """The run's results lack a key."""

    def change(folder: Path) -> None:
        path = folder / "results.json"
        data = json.loads(path.read_text())
        del data[key]
        path.write_text(json.dumps(data))

    return change


NAN_FEATURES = np.zeros((NUM_NODES, 6), dtype=np.float32)
NAN_FEATURES[3, 2] = np.nan
TOO_HIGH = np.array([[0, 1], [1, NUM_NODES]])
GOOD = recipe()
TRAIN = "train small.json --out out -q"

CASES = {
    # Wrong usage.
    "no_command": Case("", "Usage: revgnn-zoo", 2),
    "unknown_command": Case("trian", "no such command 'trian'; did you mean 'train'?", 2),
    "hopeless_command": Case("frobnicate", "No such command 'frobnicate'", 2),
    "unknown_option": Case("train small.json --epochs 5", "No such option", 2),
    "missing_argument": Case("train", "Missing argument 'RECIPE'", 2),
    "resume_without_out": Case("train small.json --resume", "--resume needs the directory of a run", 2, GOOD),
    "train_of_a_run": Case("train it", "it is a run, not a recipe; to continue it, add --resume", 2, copy_of("run")),
    "resume_of_no_run": Case("train --resume it", "it: not a run directory", 1, lambda f: (f / "it").mkdir()),
    "longer_without_a_state": Case(
        "train --resume it --set train.num_epochs=9 -q",
        "train.num_epochs cannot be raised: its saved states are gone; start again in another --out",
        1,
        copy_of("run", lambda f: [path.unlink() for path in f.glob("state-*")] and None),
    ),
    "resume_with_another_seed": Case(
        "train --resume it --set train.seed=4 -q", "holds another run (train.seed: 0 there, 4 here)", 1, copy_of("run")
    ),
    "new_over_a_file": Case("new small.json --from small_rev", "small.json: already there", 1, GOOD),
    "new_of_no_name": Case("new My.json --from small_rev", "name: expected 1 to 64 lower-case letters", 1),
    "new_of_no_json": Case("new my --from small_rev", "my: the name of a recipe file ends in .json", 1),
    "new_from_nothing": Case("new my.json --from smal_rev", "did you mean 'small_rev'?", 3),
    "unknown_split": Case("eval it --split val", "Invalid value for '--split'", 2),
    "no_views": Case("eval it --views 0", "Invalid value for '--views'", 2),
    "parts_as_text": Case("eval it --parts three", "Invalid value for '--parts'", 2),
    "many_resumed": Case("train small.json --seeds 2 --resume", "--resume: of one run; with --seeds", 2, GOOD),
    "many_devices": Case("train small.json --devices cpu,cpu", "--devices cpu,cpu: one run uses one device; ", 2, GOOD),
    "many_set_split": Case("train small.json --splits 2 --set data.split=1", "every run has a split", 2, GOOD),
    "no_threads": Case("train small.json --threads 0", "Invalid value for '--threads'", 2),
    "info_of_nothing": Case("info", "give either NAME or --env", 2),
    "info_of_both": Case("info rev_deep --env", "give either NAME or --env", 2),
    "check_of_nothing": Case("check", "Missing argument 'RECIPE...'", 2),
    "convert_without_recipe": Case("convert x.pth", "Missing option '--recipe'", 2),
    # Recipes.
    "no_such_recipe": Case("train nothing.json", "nothing.json: no such recipe file", 3),
    "no_such_name": Case("train quickstrat", "did you mean 'quickstart'?", 3),
    "recipe_a_folder": Case(
        "train folder.json", "folder.json: no such recipe file", 3, lambda f: (f / "folder.json").mkdir()
    ),
    "malformed_json": Case("train small.json", "small.json:1:10: not JSON", 1, text("small.json", '{"name": }')),
    "binary_recipe": Case("train small.json", "small.json: not UTF-8 text", 1, text("small.json", b"\xff\xfe\x00")),
    "unknown_key": Case(TRAIN, "model.num_layer: unknown key", 1, recipe(model__num_layer=3)),
    "wrong_type": Case(TRAIN, 'model.num_layers: expected an integer, got "3"', 1, recipe(model__num_layers="3")),
    "nan_learning_rate": Case(
        TRAIN + " --set train.optimizer.lr=NaN", "train.optimizer.lr: expected a number", 1, GOOD
    ),
    "no_layers": Case(TRAIN + " --set model.num_layers=0", "model.num_layers:", 1, GOOD),
    "a_billion_layers": Case(TRAIN + " --set model.num_layers=1000000000", "model.num_layers:", 1, GOOD),
    "huge_model": Case(
        TRAIN + " --set model.num_layers=100000 --set model.hidden_channels=65536", "parameters (", 1, GOOD
    ),
    "channels_not_divisible": Case(
        TRAIN + " --set model.hidden_channels=9", "must be divisible by num_groups (2)", 1, GOOD
    ),
    "set_without_value": Case(TRAIN + " --set train.seed", "expected KEY.KEY=VALUE", 1, GOOD),
    "set_without_the_part": Case(
        TRAIN + " --set num_epochs=5", "Error: --set: num_epochs: unknown key; did you mean train.num_epochs?", 1, GOOD
    ),
    "set_wrong_value": Case(
        TRAIN + " --set train.num_epochs=x", "Error: --set: train.num_epochs: expected an integer", 1, GOOD
    ),
    "predict_to_no_npz": Case(
        "predict quickstart --data digits --out logits.csv", "expected the name of a .npz file", 2
    ),
    "predict_without_a_graph": Case("predict quickstart --data gone.npz --out l.npz", "gone.npz", 1),
    "export_of_a_name": Case("export quickstart", "quickstart: a shipped name; this takes the folder of a run", 3),
    "push_of_a_name": Case("push quickstart me/x", "quickstart: a shipped name; this takes the folder of a run", 3),
    "set_unknown_key": Case(TRAIN + " --set train.sead=1", "train.sead: unknown key; did you mean 'seed'?", 1, GOOD),
    "name_of_another_file": Case(TRAIN, "name: expected 'small'", 1, recipe(name="other")),
    "escape_sequence_in_a_name": Case("check \x1b[31mred", r"\x1b[31mred: no shipped recipe", 3),
    # Data.
    "no_such_data_set": Case(
        TRAIN, "data.dataset: expected one of ogbn-proteins", 1, recipe(data={"dataset": "protein"})
    ),
    "no_such_graph": Case(TRAIN, "data.path: no such file or folder: gone.npz", 1, recipe(data__path="gone.npz")),
    "truncated_graph": Case(TRAIN, "multiclass.npz: cannot be read", 1, both(GOOD, lambda f: cut("multiclass.npz")(f))),
    "graph_of_text": Case(TRAIN, "multiclass.npz: cannot be read", 1, both(GOOD, text("multiclass.npz", "text"))),
    "pickled_graph": Case(TRAIN, "multiclass.npz: cannot be read", 1, graph(y=np.array([{}] * NUM_NODES))),
    "edge_out_of_range": Case(
        TRAIN, "edge_index holds 1 node ids above 89", 1, graph(edge_index=TOO_HIGH, edge_attr=np.zeros((2, 3)))
    ),
    "negative_edge": Case(TRAIN, "negative node ids", 1, graph(edge_index=-TOO_HIGH, edge_attr=np.zeros((2, 3)))),
    "edges_as_floats": Case(TRAIN, "edge_index must", 1, graph(edge_index=TOO_HIGH * 0.5, edge_attr=np.zeros((2, 3)))),
    "nan_features": Case(TRAIN, "x holds 1 values that are NaN or infinite", 1, graph(x=NAN_FEATURES)),
    "metric_misfits": Case(TRAIN, "eval.metric: the metric 'rocauc' does not fit", 1, recipe(eval__metric="rocauc")),
    "loss_misfits": Case(TRAIN, "train.loss: 'bce_with_logits' does not fit", 1, recipe(train__loss="bce_with_logits")),
    "no_such_split": Case(TRAIN, "data.split: 3 is too large; multiclass has 1 split", 1, recipe(data__split=3)),
    "more_test_parts_than_nodes": Case(
        TRAIN + " --set test.partition.num_parts=91", "test.partition.num_parts: 91 parts of 90 nodes", 1, GOOD
    ),
    "more_parts_than_nodes": Case(TRAIN + " --set train.partition.num_parts=91", "91 parts of 90 nodes", 1, GOOD),
    # Devices.
    "no_gpu": Case(TRAIN + " --device cuda", "--device cuda: PyTorch finds no GPU", 1, GOOD, {"NO_GPU": "1"}),
    "unknown_device": Case(TRAIN + " --device gpu", "--device gpu: no such device; here: cpu", 1, GOOD),
    # Places to write to.
    "out_is_a_file": Case(TRAIN, "out: is not a folder", 1, both(GOOD, text("out", "precious"))),
    "out_below_a_file": Case("train small.json --out small.json/run", "cannot be written: Not a directory", 1, GOOD),
    "out_of_something_else": Case(
        "train small.json --out finished", "not empty (it holds 'multiclass.npz') and not a run", 1, GOOD
    ),
    "out_of_another_run": Case(
        "train small.json --out it --resume",
        "train.seed: 0 there, 1 here); choose another --out",
        1,
        both(copy_of("run"), recipe(train__seed=1)),
    ),
    "out_of_an_unfinished_run": Case(
        "train small.json --out it",
        "continue it with --resume",
        1,
        both(copy_of("run", without("results.json")), lambda f: shutil.copy(f / "finished/small.json", f) and None),
    ),
    "out_with_a_long_name": Case(f"train small.json --out {'a' * 300}", "File name too long", 1, GOOD),
    # Runs and bundles.
    "eval_of_nothing": Case("eval ./nothing", "nothing: no such folder", 3),
    "eval_of_no_model": Case("eval nothing", "'revgnn-zoo list' shows all", 3),
    "eval_of_an_empty_folder": Case("eval it", "not a bundle: it has no config.json", 5, lambda f: (f / "it").mkdir()),
    "eval_of_cut_weights": Case(
        "eval it", "bytes, but config.json says", 5, copy_of("run/bundle", cut("model.safetensors"))
    ),
    "eval_of_a_cut_config": Case(
        "eval it", "config.json:", 5, copy_of("run/bundle", lambda f: (f / "config.json").write_text("{") and None)
    ),
    "eval_without_weights": Case(
        "eval it", "it has no model.safetensors", 5, copy_of("run/bundle", without("model.safetensors"))
    ),
    "eval_without_data": Case("eval it", "data.path: no such file or folder", 1, copy_of("run/bundle")),
    "eval_with_data_of_nothing": Case(
        "eval it --data gone.npz", "no such file or folder: gone.npz", 1, copy_of("run/bundle")
    ),
    "eval_of_too_many_parts": Case("eval it --parts 91", "--parts 91: multiclass has only 90 nodes", 1, copy_of("run")),
    "eval_of_a_damaged_run": Case("eval it", "best.safetensors: damaged", 1, copy_of("run", cut("best.safetensors"))),
    "export_of_nothing": Case("export nothing", "nothing: no such run directory", 1),
    "export_of_a_bundle": Case("export it", "not a run directory: it has no recipe.json", 1, copy_of("run/bundle")),
    "export_of_an_unfinished_run": Case(
        "export it", "the run is not finished", 1, copy_of("run", without("results.json"))
    ),
    "export_over_something": Case("export it --out finished", "already there and not this bundle", 5, copy_of("run")),
    "plot_over_a_recipe": Case(
        "plot it --out small.json", "small.json: the name of a picture ends in .png", 1, copy_of("run")
    ),
    "a_metric_that_no_label_defines": Case(
        "train small.json --out out -q",
        "binary: valid nodes: rocauc is not defined",
        1,
        both(recipe(train__loss="bce_with_logits", eval__metric="rocauc", data__path="binary.npz"), one_class),
    ),
    "plot_of_nothing": Case("plot nothing", "nothing: no such run directory", 1),
    "plot_of_a_damaged_log": Case(
        "plot it", "metrics.jsonl:1", 1, copy_of("run", lambda f: (f / "metrics.jsonl").write_text("x\n") and None)
    ),
    "plot_of_a_malformed_log": Case(
        "plot it",
        "metrics.jsonl:1: epoch: expected an integer",
        1,
        copy_of("run", lambda f: (f / "metrics.jsonl").write_text('{"epoch": "x", "train_loss": 1}') and None),
    ),
    "export_of_malformed_results": Case(
        "export it", "results.json: num_epochs: missing", 1, copy_of("run", without_key("num_epochs"))
    ),
    "info_of_malformed_results": Case(
        "info it", "results.json: results: missing", 1, copy_of("run", without_key("results"))
    ),
    "convert_of_nothing": Case("convert x.pth --recipe rev_deep", "x.pth: no such file", 5),
    "convert_of_text": Case(
        "convert x.pth --recipe rev_deep", "not a checkpoint that can be read", 5, text("x.pth", "text")
    ),
    "synth_too_small": Case("synth data --nodes 10", "Invalid value for '--nodes'", 2),
    "unknown_backend": Case("info --env", "ZOO_BACKEND", 1, environment={"ZOO_BACKEND": "typo"}),
}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file, link and folder with its content; locks say nothing."""
    found = (path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, finished: Path, tmp_path: Path, zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    shutil.copytree(finished, tmp_path / "finished")
    case.prepare(tmp_path)
    for key, value in case.environment.items():
        monkeypatch.setenv(key, value)
    if "NO_GPU" in case.environment:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if "ZOO_BACKEND" in case.environment:
        monkeypatch.setattr("zoo.ops.dispatch._named", case.environment["ZOO_BACKEND"])
    before = tree(tmp_path)
    result = zoo_command(*case.arguments.split())
    assert result.code == case.code
    assert result.out == ""
    if name != "no_command":
        assert len(result.err) == 1
        assert result.err[0].startswith("Error: ")
        assert result.err[0].isprintable()
    assert case.expected in "\n".join(result.err)
    assert tree(tmp_path) == before


def test_debug_shows_the_traceback(tmp_path: Path, zoo_process: Callable[..., Any]) -> None:
    result = zoo_process("check", "nothing.json", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "NotFoundError: nothing.json: no such recipe file" in result.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, zoo_process: Callable[..., Any]) -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "zoo", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent.parent,
    )
    os.close(write)
    assert result.returncode == 141
    assert result.stderr == ""


def test_light_commands_do_not_import_torch(zoo_process: Callable[..., Any], tmp_path: Path) -> None:
    code = (
        "import sys, zoo.cli\n"
        "for arguments in (['--help'], ['list'], ['check', 'rev_deep'], ['info', 'rev_wide'], ['train', '--help'],\n"
        "        ['compare', '--help']):\n"
        "    assert zoo.cli.main(arguments) == 0, arguments\n"
        "assert not {'torch', 'numpy', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    root = Path(__file__).parent.parent.parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 0, result.stderr


def test_the_bad_recipes_are_good_but_for_one_fault(tmp_path: Path) -> None:
    # Otherwise a case might pass for another reason than the one it names.
    assert json.loads(write_recipe(tmp_path).read_text()) == changed(recipe_data(tmp_path / "multiclass.npz"))


CLOSED = {
    "stderr": ("2>&-", "list", 0),
    "stdout": (">&-", "list", 0),
    "all": ("<&- >&- 2>&-", "train small.json --out run", 0),
    "list_to_a_full_disk": (">/dev/full", "list", 1),
    "train_to_a_full_disk": (">/dev/full", "train small.json --out run -q", 1),
}


@pytest.mark.parametrize("case", CLOSED)
def test_closed_and_full_streams_do_not_end_in_a_traceback(case: str, tmp_path: Path) -> None:
    redirection, arguments, code = CLOSED[case]
    write_recipe(tmp_path, train__num_epochs=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_BACKEND": "chunked"}
    command = f"{sys.executable} -m zoo {arguments} {redirection}"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert code == 0 or result.stderr == "Error: No space left on device\n"
    assert arguments == "list" or (tmp_path / "run" / "results.json").is_file()


def test_an_override_nested_too_deeply_is_one_line(zoo_command: Command) -> None:
    result = zoo_command("check", "quickstart", "--set", "train.seed=" + "[" * 5000)
    assert (result.code, result.err) == (1, ["Error: --set train.seed: nested too deeply"])


def test_a_line_break_in_a_name_begins_no_line(tmp_path: Path, zoo_command: Command) -> None:
    for words in (("check", "a\nb"), ("eval", "./a\nb"), ("train", "small.json", "--out", "small.json/a\nb")):
        write_recipe(tmp_path)
        result = zoo_command(*words)
        assert len(result.err) == 1
        assert r"a\nb" in result.err[0]
    # Several faults are still a line each.
    bad = tmp_path / "c\nd.json"
    bad.write_text(json.dumps(changed(recipe_data(tmp_path / "multiclass.npz"), train__seed=-1, name="x y")))
    lines = zoo_command("check", bad).err
    assert len(lines) == 2
    assert all(line.startswith("Error: ") and r"c\nd.json: " in line for line in lines)


def test_other_libraries_say_nothing_of_a_home_without_a_folder(zoo_command: Command) -> None:
    assert zoo_command("list", "-q").code == 0
    assert not logging.getLogger("matplotlib").isEnabledFor(logging.WARNING)
