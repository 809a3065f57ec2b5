import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import zoo
from tests.cli.conftest import ROOT, Result
from tests.workflows.small import write_recipe
from zoo.cli import COMMANDS
from zoo.spec.recipe import parse_recipe, read_recipe
from zoo.spec.shipped import list_recipes, recipe_path
from zoo.workflows import train as train_module

Command = Callable[..., Result]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, zoo_command: Command) -> None:
    result = zoo_command(name, "--help")
    assert result.code == 0
    assert f"revgnn-zoo {name}" in result.out.split("Example:")[1]
    for option in ("--debug", "-q, --quiet", "--help"):
        assert option in result.out


def test_help_lists_every_command(zoo_command: Command) -> None:
    result = zoo_command("--help")
    assert result.code == 0
    assert all(f"\n  {name} " in result.out for name in COMMANDS)


def test_the_version_is_printed(zoo_command: Command) -> None:
    assert "0.1.0" in zoo_command("--version").out


def test_list_names_every_recipe_with_its_reported_figure(zoo_command: Command) -> None:
    result = zoo_command("list")
    assert result.code == 0
    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert set(list_recipes()) <= set(rows)
    for part in ("ogbn-proteins", "1001 x 80", "20,031,384", "test rocauc 87.74 (10 views of 3 parts)"):
        assert part in rows["rev_deep"]
    assert "  accuracy 95.32" in rows["quickstart"]


def test_list_can_be_filtered(zoo_command: Command) -> None:
    def names(*arguments: str) -> list[str]:
        return [row["name"] for row in json.loads(zoo_command("list", "--json", *arguments).out)]

    assert names("rev_*", "--family", "rev_gat") == ["rev_gat_arxiv", "rev_gat_arxiv_kd", "rev_gat_wide_arxiv"]
    assert "quickstart" in names("--pretrained", "--dataset", "digits")
    assert "rev_deep" not in names("--pretrained")
    nothing = zoo_command("list", "--family", "rew")
    assert (nothing.code, nothing.err) == (3, ["Error: no such model; 'revgnn-zoo list' shows all"])


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_on_a_terminal_tables_fit_its_width(
    columns: int, zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("zoo.cli.common.on_terminal", lambda: True)
    lines = zoo_command("list").out.splitlines()
    assert max(map(len, lines)) <= columns
    rows = [line for line in lines if line.startswith(("rev_deep ", "minesweeper_rev_deq "))]
    assert len(rows) == 2
    # What does not fit is left out, never cut.
    assert "20,031,384" in rows[1]
    assert "…" not in "".join(lines)
    assert ("87.74 (10 views of 3 parts)" in rows[1]) == (columns == 160)
    # The summary of this one has more than 80 characters.
    facts = zoo_command("info", "minesweeper_rev_1001").out.splitlines()
    assert max(map(len, facts)) <= columns


def test_list_as_json(zoo_command: Command) -> None:
    rows = json.loads(zoo_command("list", "--json").out)
    wide = next(row for row in rows if row["name"] == "rev_wide")
    assert (wide["num_layers"], wide["hidden_channels"], wide["num_parameters"]) == (448, 224, 68_471_608)


def test_info_describes_a_recipe(zoo_command: Command) -> None:
    out = zoo_command("info", "rev_deep").out
    assert "parameters   20,031,384 (published: 20,031,384)" in out
    assert "reported     test rocauc 87.74 +- 0.13, 10 views of 3 parts" in out
    assert "num_layers=1001" in out
    data = json.loads(zoo_command("info", "rev_deep", "--json").out)
    assert data["recipe"]["model"]["norm"] == "layer"
    assert data["num_parameters"] == 20_031_384


def test_info_describes_runs_and_bundles(finished: Path, zoo_command: Command) -> None:
    for folder in ("run", "run/bundle"):
        out = zoo_command("info", finished / folder).out
        assert "small: A recipe for tests." in out
        assert "parameters   675" in out
        assert "3 views of 2 parts" in out


def test_info_describes_the_environment(zoo_command: Command) -> None:
    result = zoo_command("info", "--env")
    assert result.code == 0
    assert "torch" in result.out
    facts = json.loads(zoo_command("info", "--env", "--json").out)
    assert facts["backends"]["cpu"]["backend"] == "chunked"


def test_check_says_ok_or_every_fault(tmp_path: Path, zoo_command: Command) -> None:
    good = write_recipe(tmp_path)
    result = zoo_command("check", good, "rev_deep")
    assert result.code == 0
    assert result.out.splitlines()[0] == f"{good}: ok"
    bad = tmp_path / "bad.json"
    bad.write_text(good.read_text().replace("num_layers", "num_layer").replace('"lr": 0.01', '"lr": -1'))
    result = zoo_command("check", good, bad, "rev_dep")
    assert result.code == 1
    assert result.out.splitlines() == [f"{good}: ok"]
    assert len(result.err) == 4
    assert all(line.startswith("Error: ") for line in result.err)
    assert f"Error: {bad}: model.num_layer: unknown key; did you mean 'num_layers'?" in result.err
    assert any("rev_dep: no shipped recipe of that name; did you mean 'rev_deep'?" in line for line in result.err)


def test_check_as_json(tmp_path: Path, zoo_command: Command) -> None:
    bad = write_recipe(tmp_path, train__seed=-1)
    result = zoo_command("check", "rev_deep", bad, "--json")
    good, faulty = json.loads(result.out)
    assert (result.code, result.err) == (1, [])
    assert good == {"recipe": "rev_deep", "faults": []}
    assert faulty["faults"][0].startswith(f"{bad}: train.seed: ")
    assert zoo_command("check", "rev_deep", "--json").code == 0


def test_no_sentence_of_the_help_is_cut_in_a_narrow_terminal(
    zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = zoo_command("--help").out
    assert "..." not in shown.partition("Commands:")[2].partition("Example:")[0]
    for name in COMMANDS:
        shown += zoo_command(name, "--help").out
    # What is set before click's example of completion is a line of the shell.
    assert [line for line in shown.splitlines() if len(line) > 80 and "_COMPLETE" not in line] == []


def test_shells_complete_commands_and_options(zoo_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_REVGNN_ZOO_COMPLETE", "zsh_source")
    assert "_REVGNN_ZOO_COMPLETE=zsh_complete revgnn-zoo" in zoo_command().out
    monkeypatch.setenv("_REVGNN_ZOO_COMPLETE", "zsh_complete")
    for words, number, expected in (("revgnn-zoo tr", 1, "train"), ("revgnn-zoo train --res", 2, "--resume")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(number))
        assert expected in zoo_command().out.splitlines()


def test_without_a_package_a_command_says_which(zoo_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "zoo.workflows.train")
    monkeypatch.setitem(sys.modules, "torch", None)
    result = zoo_command("train", "quickstart")
    assert result.code == 1
    (line,) = result.err
    assert line == "Error: this needs the package 'torch', which is not installed; try: pip install torch"


def test_new_copies_a_recipe_under_a_name_of_its_own(tmp_path: Path, zoo_command: Command) -> None:
    result = zoo_command("new", "mine/my.json", "--from", "small_rev", "--set", "model.num_layers=3")
    assert result.code == 0, result.err
    mine, theirs = read_recipe(tmp_path / "mine/my.json"), read_recipe(recipe_path("small_rev"))
    assert (mine.name, mine.model.num_layers, mine.source) == ("my", 3, None)
    assert mine.train == theirs.train
    # What the source leaves to defaults, the copy leaves to them too.
    assert "seed" not in json.loads((tmp_path / "mine/my.json").read_text())["train"]


def test_a_run_is_continued_from_its_directory_alone(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    small = finished / "small.json"
    assert zoo_command("train", small, "--set", "train.num_epochs=6", "--out", "six", "-q").code == 0
    assert zoo_command("train", small, "--set", "train.num_epochs=2", "--out", "run", "-q").code == 0
    again = zoo_command("train", "--resume", "run")
    assert (again.code, again.err) == (0, ["run: already done"])
    # Extended, a finished run ends as one that was longer from the beginning.
    longer = zoo_command("train", "--resume", "run", "--set", "train.num_epochs=6", "-q")
    assert longer.code == 0, longer.err
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "six")]
    assert results[0]["results"] == results[1]["results"]
    assert (results[0]["best_epoch"], results[0]["num_epochs"]) == (results[1]["best_epoch"], 6)


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ({"train__schedule": {"type": "cosine"}}, "its learning rate follows a cosine"),
        ({"train__distillation": {"alpha": 0.5, "temperature": 1.0}}, "it learns from a teacher"),
    ],
)
def test_a_run_whose_epochs_depend_on_their_number_is_not_extended(
    places: dict[str, object], reason: str, tmp_path: Path, zoo_command: Command
) -> None:
    recipe = write_recipe(tmp_path, **places)
    assert zoo_command("train", recipe, "--set", "train.num_epochs=2", "--out", "run", "-q").code == 0
    result = zoo_command("train", "--resume", "run", "--set", "train.num_epochs=3", "-q")
    assert result.code == 1
    assert reason in result.err[0]


def test_a_stopped_run_prints_the_command_that_continues(
    finished: Path, zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    step = train_module.training_step
    with monkeypatch.context() as context:
        context.setattr(train_module, "training_step", stop)
        options = ("--set", "train.num_epochs=2", "--out", "my run", "--threads", 1, "-q")
        stopped = zoo_command("train", finished / "small.json", *options)
    assert stopped.code == 143
    assert stopped.err[0].startswith("Stopped: SIGTERM at epoch 1, part 1/2; saved: my run/state-1.safetensors; ")
    assert stopped.err[1:] == ["revgnn-zoo train --resume 'my run' --threads 1 --quiet"]
    assert zoo_command(*shlex.split(stopped.err[1])[1:]).code == 0


def test_train_prints_a_table_and_the_baseline_beside_it(tmp_path: Path, zoo_command: Command) -> None:
    recipe = write_recipe(tmp_path)
    result = zoo_command("train", recipe, "--set", "train.num_epochs=2", "--out", "run", "--baseline")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["split", "metric", "value", "logistic", "regression", "protocol"]
    assert lines[3].startswith("test ")
    assert "run: run" in lines
    assert any(line.startswith("epoch 2/2") for line in result.err)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["train"]["num_epochs"] == 2


def test_a_baseline_is_added_to_a_finished_run(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    result = zoo_command("train", finished / "small.json", "--out", "run", "--baseline")
    assert result.code == 0
    assert "logistic regression" in result.out
    assert "baseline" in json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["model.num_layers=7"], "changed: model.num_layers=7"),
        (["model.num_layers=1001", "model.num_layers=7"], "changed: model.num_layers=7"),
        (["model.norm=batch", 'data.node_features=["degree"]'], 'data.node_features=["degree"], model.norm=batch'),
        (['model.conv={"type": "gcn"}'], "model.conv.aggr.type left out"),
        (
            ['data={"dataset": "file", "path": "/home/me/graph.npz"}'],
            'data.path=graph.npz, data.node_features=["node"]',
        ),
        (["train.num_epochs=5", "test.num_views=1", "model.num_layers=1001"], None),
        ([], None),
    ],
)
def test_with_another_model_or_other_data_a_recipe_has_no_source(assignments: list[str], expected: str | None) -> None:
    recipe = read_recipe("rev_deep", assignments)
    shipped = read_recipe(recipe_path("rev_deep"))
    if expected is None:
        assert (recipe.source, recipe.summary) == (shipped.source, shipped.summary)
    else:
        assert recipe.source is None
        assert recipe.summary.startswith("rev_deep, changed: ")
        assert expected in recipe.summary
        assert "/home" not in recipe.summary


def test_where_the_file_lies_changes_no_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    plain = read_recipe(recipe, ())
    name = Path(plain.data.path or "").name
    assert read_recipe(recipe, [f"data.path=/data/{name}"]).summary == plain.summary
    assert "changed: data.path=other.npz" in read_recipe(recipe, ["data.path=/data/other.npz"]).summary


def test_many_changes_fit_into_the_summary(tmp_path: Path) -> None:
    changes = [f"data.path={'a' * 250}.npz", "model.num_layers=3", "model.dropout=0.25"]
    recipe = read_recipe(write_recipe(tmp_path), changes)
    assert len(recipe.summary) == 300
    assert parse_recipe(recipe.to_json(), where="x").summary == recipe.summary


def test_train_as_json_and_quiet(tmp_path: Path, zoo_command: Command) -> None:
    result = zoo_command("train", write_recipe(tmp_path), "--set", "train.num_epochs=1", "--out", "run", "--json", "-q")
    assert result.code == 0
    assert result.err == []
    data = json.loads(result.out)
    assert data["run"] == "run"
    assert data["num_epochs"] == 1


@pytest.mark.parametrize("option", [["--out", "run"], ["--resume"], ["--json"], ["--seeds", "2"], ["--splits", "all"]])
def test_a_dry_run_refuses_options_that_it_would_ignore(option: list[str], zoo_command: Command) -> None:
    result = zoo_command("train", "quickstart", "--dry-run", *option)
    assert result.code == 2
    assert "--dry-run: goes without" in result.err[-1]


def test_train_chooses_a_fresh_folder(tmp_path: Path, zoo_command: Command) -> None:
    recipe = write_recipe(tmp_path)
    for _ in range(2):
        assert zoo_command("train", recipe, "--set", "train.num_epochs=1", "-q").code == 0
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(runs) == 2
    assert all(name.startswith("small-2") for name in runs)


def test_a_finished_run_is_done_already(finished: Path, zoo_command: Command) -> None:
    result = zoo_command("train", finished / "small.json", "--out", finished / "run", "--resume")
    assert result.code == 0
    assert result.err == [f"{finished / 'run'}: already done"]
    assert result.out.splitlines()[0].startswith("split")


def test_eval_of_a_run_and_of_its_bundle_agree(finished: Path, zoo_command: Command) -> None:
    graph = finished / "multiclass.npz"
    run = zoo_command("eval", finished / "run", "--json", "-q")
    bundle = zoo_command("eval", finished / "run" / "bundle", "--data", graph, "--json", "-q")
    assert (run.code, bundle.code) == (0, 0)
    values = [[row["value"] for row in json.loads(result.out)] for result in (run, bundle)]
    assert values[0] == values[1]


def test_eval_takes_a_relative_folder(finished: Path, zoo_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.parent)
    result = zoo_command("eval", f"{finished.name}/run", "--split", "test", "--views", 2, "--parts", 3, "-q")
    assert result.code == 0
    assert "2 views of 3 parts" in result.out
    assert "train" not in result.out


def test_predict_writes_the_logits_of_every_node(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    graph = finished / "multiclass.npz"
    for model in ("run", "run/bundle"):
        result = zoo_command(
            "predict", finished / model, "--data", graph, "--out", f"{Path(model).name}.npz", "--parts", 1
        )
        assert (result.code, result.out) == (0, f"{Path(model).name}.npz: logits [90, 3]\n"), result.err
    logits = [np.load(tmp_path / f"{name}.npz")["logits"] for name in ("run", "bundle")]
    assert np.array_equal(*logits)
    # The figure that eval gives follows from what was written.
    evaluated = zoo_command("eval", finished / "run", "--split", "test", "--parts", 1, "--json", "-q")
    arrays = np.load(graph)
    is_right = logits[0].argmax(1) == arrays["y"]
    assert is_right[arrays["test_mask"]].mean() == pytest.approx(json.loads(evaluated.out)[0]["value"])


def test_export_writes_an_onnx_file_beside_the_bundle(
    finished: Path, tmp_path: Path, zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("export", finished / "run", "--out", tmp_path / "bundle", "--onnx")
    data = json.loads(zoo_command(*command, "--json").out)
    assert data["onnx"] == str(tmp_path / "model.onnx")
    assert [value.name for value in onnx.load(data["onnx"]).graph.output] == ["logits"]
    # It is written once; what the command says without --json follows.
    monkeypatch.setattr("zoo.workflows.onnx.export_onnx", lambda model, path: None)
    assert f"onnx: {tmp_path / 'model.onnx'} (" in zoo_command(*command).out


def test_export_and_plot_say_what_they_wrote(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    result = zoo_command("export", finished / "run", "--out", tmp_path / "bundle")
    assert result.code == 0
    assert result.out.startswith(f"bundle: {tmp_path / 'bundle'}")
    data = json.loads(zoo_command("export", finished / "run", "--out", tmp_path / "bundle", "--json").out)
    assert len(data["sha256"]) == 64
    result = zoo_command("plot", finished / "run", "--out", tmp_path / "curves.png")
    assert result.out == f"curves: {tmp_path / 'curves.png'}\n"
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_synth_writes_data_that_train_reads(
    tmp_path: Path, zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert zoo_command("synth", tmp_path / "data", "--nodes", 200, "--degree", 10).code == 0
    changes = ["model.num_layers=2", "train.num_epochs=1", "test.num_views=1"]
    options = [word for change in changes for word in ("--set", change)]
    result = zoo_command("train", "rev_deep", *options, "--out", "run", "--json", "-q", "--device", "cpu")
    assert result.code == 0, result.err
    assert {row["metric"] for row in json.loads(result.out)["results"]} == {"rocauc"}
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["summary"] == "rev_deep, changed: model.num_layers=2"
    assert "source" not in recipe


def test_convert_names_its_bundle(tmp_path: Path, zoo_command: Command) -> None:
    official = next((Path(__file__).parent.parent / "parity" / "model_ckpt_g2_l7").glob("*.pth"))
    shutil.copy(official, tmp_path / "official.pth")
    changes = ["--set", "model.num_layers=7", "--set", "model.hidden_channels=16"]
    result = zoo_command("convert", "official.pth", "--recipe", "rev_deep", *changes)
    assert result.code == 0
    assert result.out.startswith("bundle: official (")
    recipe = json.loads((tmp_path / "official" / "config.json").read_text())["recipe"]
    assert recipe["summary"] == "rev_deep, changed: model.hidden_channels=16, model.num_layers=7"
    assert "source" not in recipe


def test_a_page_documents_every_environment_variable() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "zoo").rglob("*.py"))
    table = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    for variable in set(re.findall(r"\bZOO_[A-Z_]+", sources)):
        assert f"| `{variable}` |" in table


def test_the_package_is_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"revgnn-zoo, version {zoo.__version__}\n"


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(tmp_path: Path) -> None:
    # The interrupt comes with the first of its imports.
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'zoo.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['revgnn-zoo', 'list']\n"
        "runpy.run_module('zoo', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "Interrupted\n")
