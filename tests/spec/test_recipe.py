import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.small import changed, recipe_data
from zoo.errors import RecipeError
from zoo.spec.recipe import Recipe, parse_recipe, read_recipe

GOOD = recipe_data(Path("graph.npz"))


def write(folder: Path, content: str | bytes, name: str = "small.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def without(place: str) -> dict[str, Any]:
    data = changed(GOOD)
    *keys, last = place.split(".")
    node = data
    for key in keys:
        node = node[key]
    del node[last]
    return data


def test_a_recipe_reads_back_with_every_default_spelled_out(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, json.dumps(GOOD)))
    full = recipe.to_json()
    assert full["model"]["num_groups"] == 2
    assert full["train"]["schedule"] == {"type": "constant", "num_warmup_epochs": 0}
    assert parse_recipe(full, where="again") == recipe


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert isinstance(read_recipe(write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode())), Recipe)


# What stands in the file, and what the message must say.
MALFORMED = {
    "empty": ("", "small.json:1:1: not JSON"),
    "cut_short": (json.dumps(GOOD)[:-20], "not JSON"),
    "trailing_comma": ('{"name": "small",}', "small.json:1:18: not JSON"),
    "comment": ('{\n// a remark\n"name": 1}', "small.json:2:1: not JSON"),
    "single_quotes": ("{'name': 1}", "small.json:1:2: not JSON"),
    "utf_16": (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
    "not_utf_8": (b'{"name": "\xff"}', "not UTF-8"),
    "duplicate_key": ('{"name": "a", "name": "b"}', "'name' stands twice"),
    "nan": ('{"name": NaN}', "NaN is not a JSON number"),
    "infinity": ('{"name": -Infinity}', "-Infinity is not a JSON number"),
    "too_large_for_a_float": ('{"name": 1e999}', "1e999 is too large"),
    "5000_digits": ('{"name": ' + "9" * 5000 + "}", "4300"),
    "deep_nesting": ("[" * 100_000, "nested too deeply"),
    "top_level_list": ("[]", "expected an object, got []"),
    "top_level_string": ('"text"', 'expected an object, got "text"'),
    "larger_than_a_megabyte": ('{"name": "' + "a" * (1 << 20) + '"}', "larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_json_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    content, expected = MALFORMED[case]
    path = write(tmp_path, content)
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


FAULTY = {
    "unknown_key": (changed(GOOD, model__num_layer=3), "model.num_layer: unknown key; did you mean 'num_layers'?"),
    "missing_key": (without("train.num_epochs"), "train.num_epochs: missing"),
    "text_for_a_number": (
        changed(GOOD, model__hidden_channels="80"),
        'model.hidden_channels: expected an integer, got "80"',
    ),
    "float_for_an_integer": (changed(GOOD, model__num_layers=3.0), "model.num_layers: expected an integer, got 3.0"),
    "true_for_1": (changed(GOOD, model__num_layers=True), "model.num_layers: expected an integer, got true"),
    "null": (changed(GOOD, model__dropout=None), "model.dropout: null is not a value; leave the key out"),
    "newer_schema": (changed(GOOD, schema_version=3), "schema_version: 3 was written by a newer revgnn-zoo"),
    "missing_schema": (without("schema_version"), "schema_version: missing"),
    "schema_as_text": (changed(GOOD, schema_version="1"), "schema_version"),
    "schema_as_true": (changed(GOOD, schema_version=True), "schema_version: expected one of 2, got true"),
    "newline_in_the_name": (changed(GOOD, name="a\nb"), "name:"),
    "escape_in_the_name": (changed(GOOD, name="a\x1b[31m"), "name:"),
    "surrogate_in_the_name": (changed(GOOD, name="\ud800"), "name"),
    "negative_lr": (changed(GOOD, train__optimizer__lr=-1.0), "train.optimizer.lr:"),
    "zero_lr": (changed(GOOD, train__optimizer__lr=0), "train.optimizer.lr:"),
    "nan_lr": (changed(GOOD, train__optimizer__lr=float("nan")), "NaN is not a JSON number"),
    "nan_dropout": (changed(GOOD, model__dropout=float("nan")), "NaN is not a JSON number"),
    "dropout_of_1": (changed(GOOD, model__dropout=1.0), "model.dropout:"),
    "no_layers": (changed(GOOD, model__num_layers=0), "model.num_layers:"),
    "negative_layers": (changed(GOOD, model__num_layers=-1), "model.num_layers:"),
    "a_billion_layers": (changed(GOOD, model__num_layers=10**9), "model.num_layers:"),
    "a_billion_channels": (changed(GOOD, model__hidden_channels=10**9), "model.hidden_channels:"),
    "too_many_parameters": (changed(GOOD, model__num_layers=100_000, model__hidden_channels=65_536), "parameters"),
    "channels_not_divisible": (
        changed(GOOD, model__hidden_channels=9),
        "hidden_channels (9) must be divisible by num_groups (2)",
    ),
    "one_group": (changed(GOOD, model__num_groups=1), "model.num_groups:"),
    "no_parts": (changed(GOOD, train__partition__num_parts=0), "train.partition.num_parts:"),
    "negative_seed": (changed(GOOD, train__seed=-1), "train.seed:"),
    "seed_of_33_bits": (changed(GOOD, train__seed=2**32), "train.seed:"),
    "unknown_dataset": (changed(GOOD, data={"dataset": "ogbn-protein"}), "did you mean 'ogbn-proteins'?"),
    "no_columns": (
        changed(GOOD, data={"dataset": "ogbn-proteins"}),
        "data.node_features: 'node' has no columns in ogbn-proteins; use 'edge_sum', 'species_one_hot', 'degree', ",
    ),
    "no_edge_features": (
        changed(GOOD, data={"dataset": "cora", "node_features": ["node", "edge_sum"]}),
        "data.node_features: 'edge_sum' has no columns in cora; use 'degree', 'laplacian', 'constant'",
    ),
    "category_alone": (
        changed(GOOD, data={"dataset": "ogbn-proteins", "node_features": ["species_one_hot"]}),
        "data.node_features: 'species_one_hot' needs another node feature beside it",
    ),
    "feature_named_twice": (
        changed(GOOD, data__node_features=["degree", "degree"]),
        "data.node_features: a feature is named twice in degree, degree",
    ),
    "unknown_metric": (changed(GOOD, eval__metric="roc"), "eval.metric: expected one of rocauc"),
    "unknown_loss": (changed(GOOD, train__loss="hinge"), "train.loss: expected one of"),
    "unknown_family": (changed(GOOD, model={"type": "rev_gnn"}), "model.type: expected one of rev"),
    "unknown_conv": (changed(GOOD, model__conv={"type": "gene"}), "model.conv.type: expected one of gen"),
    "family_missing": (without("model.type"), "model: missing key 'type'"),
    "file_without_path": (changed(GOOD, data={"dataset": "file"}), "path goes with dataset 'file', and only with it"),
    "path_without_file": (changed(GOOD, data={"dataset": "digits", "path": "x"}), "path goes with dataset 'file'"),
    "label_reuse_of_many_labels": (
        changed(GOOD, train__loss="bce_with_logits", train__label_reuse={}),
        "train: label_reuse goes with a loss of classes, 'cross_entropy' or 'log_cross_entropy', not with 'bce_with_",
    ),
    "distillation_of_many_labels": (
        changed(GOOD, train__loss="bce_with_logits", train__distillation={"alpha": 0.5, "temperature": 1.0}),
        "train: distillation goes with a loss of classes",
    ),
    "labels_beside_species": (
        changed(GOOD, train__label_reuse={}, data__node_features=["degree", "species_one_hot"]),
        "train.label_reuse and the node feature 'species_one_hot' both want the last columns of x",
    ),
    "all_labels_read": (changed(GOOD, train__label_reuse={"mask_rate": 1.0}), "train.label_reuse.mask_rate:"),
    "no_alpha": (changed(GOOD, train__distillation={"temperature": 1.0}), "train.distillation.alpha: missing"),
    "no_temperature": (
        changed(GOOD, train__distillation={"alpha": 0.5, "temperature": 0}),
        "train.distillation.temperature:",
    ),
    "unknown_selection": (changed(GOOD, eval__select="accuracy"), "eval.select: expected one of metric, loss"),
    "name_of_another_file": (changed(GOOD, name="other"), "name: expected 'small', the name of the file, got 'other'"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_fault_is_reported_with_its_place(case: str, tmp_path: Path) -> None:
    data, expected = FAULTY[case]
    path = write(tmp_path, json.dumps(data))
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert str(error.value).isprintable()


def test_all_faults_come_in_one_report(tmp_path: Path) -> None:
    data = changed(GOOD, model__num_layers="x", train__seed=-1, eval__metrics=1, data__dataset="cor")
    with pytest.raises(RecipeError) as error:
        read_recipe(write(tmp_path, json.dumps(data)))
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for place in ("model.num_layers", "train.seed", "eval.metrics", "data.dataset"):
        assert sum(place in line for line in lines) == 1


# A rule that joins keys of one object, broken beside a fault in another object.
RULES = {
    "groups": (
        changed(GOOD, model__hidden_channels=65, train__optimizer__lr=0),
        "model: hidden_channels (65) must be divisible by num_groups (2)",
        2,
    ),
    "distinct_layers": (
        changed(GOOD, model__num_layers=3, model__num_distinct_layers=4, eval__metrics=1),
        "model: num_distinct_layers (4) must be at most num_layers (3)",
        2,
    ),
    "path": (
        changed(GOOD, data={"dataset": "digits", "path": "x"}, train__seed=-1),
        "data: path goes with dataset 'file', and only with it",
        2,
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_between_keys_are_judged_beside_faults_of_other_objects(case: str) -> None:
    data, expected, num_faults = RULES[case]
    with pytest.raises(RecipeError) as error:
        parse_recipe(data, where="here")
    lines = str(error.value).splitlines()
    assert len(lines) == num_faults
    assert sum(expected in line for line in lines) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model__num_groups": "x", "model__hidden_channels": 65},
        {"model__num_groups": 1, "model__hidden_channels": 65},
        {"model__hidden_channels": None},
        {"data": {"dataset": "file", "path": 5}},
        {"data": {"dataset": "fil", "path": "x"}},
        {"model": {"type": "rev_gnn", "hidden_channels": 65}},
        {"model": 5},
    ],
)
def test_a_rule_about_a_key_at_fault_is_not_judged(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(changed(GOOD, **changes), where="here")
    assert "\n" not in str(error.value)
    assert "divisible" not in str(error.value)
    assert "path goes" not in str(error.value)


def places_of(data: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places_of(value, (*above, key))


@pytest.mark.parametrize("place", list(places_of(parse_recipe(GOOD, where="good").to_json())), ids=".".join)
def test_any_damage_to_a_key_gives_a_recipe_or_a_report(place: tuple[str, ...]) -> None:
    *keys, last = place
    for damage in ("gone", None, [], [None], {}, {"type": []}, "x", 5, -0.5, True):
        data = parse_recipe(GOOD, where="good").to_json()
        node = data
        for key in keys:
            node = node[key]
        del node[last]
        if damage != "gone":
            node[last] = damage
        report = ""
        try:
            assert isinstance(parse_recipe(data, where="here"), Recipe)
        except RecipeError as error:
            report = str(error)
        assert all(line.startswith("here: ") for line in report.splitlines())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"summary": "half \ud83d"}, "'summary' holds a lone surrogate"),
        ({"train": json.loads("[" * 500 + "]" * 500)}, "nested too deeply"),
    ],
)
def test_text_that_is_no_unicode_and_great_depth_are_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=f"^x: {expected}$"):
        parse_recipe({**GOOD, **changes}, where="x")


def test_a_warm_up_has_an_end() -> None:
    schedule = {"type": "constant", "num_warmup_epochs": 10**400}
    with pytest.raises(RecipeError, match="num_warmup_epochs"):
        parse_recipe(changed(GOOD, train__schedule=schedule), where="x")


def test_a_wrong_item_does_not_make_a_list_too_short() -> None:
    with pytest.raises(
        RecipeError, match=r"^--set: data\.node_features\[0\]: expected one of node, .*, got \"bogus\"$"
    ):
        parse_recipe(GOOD, where="here", overrides=['data.node_features=["bogus"]'])
    with pytest.raises(RecipeError, match=r"^--set: data\.node_features: expected at least 1 item, got \[\]$"):
        parse_recipe(GOOD, where="here", overrides=["data.node_features=[]"])


def test_a_wrong_name_is_answered_in_words() -> None:
    message = '^--set: name: expected 1 to 64 lower-case letters, digits and underscores, .*, got "Rev-GNN"$'
    with pytest.raises(RecipeError, match=message):
        parse_recipe(GOOD, where="here", overrides=["name=Rev-GNN"])


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(GOOD))
    recipe = read_recipe(
        path, ["train.num_epochs=7", "eval.metric=micro_f1", 'model.conv={"type": "gcn"}', "test.num_views=1"]
    )
    assert (recipe.train.num_epochs, recipe.eval.metric, recipe.model.conv.type) == (7, "micro_f1", "gcn")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.num_epochs", "--set train.num_epochs: expected KEY.KEY=VALUE"),
        ("=5", "expected KEY.KEY=VALUE"),
        ("train..seed=5", "expected KEY.KEY=VALUE"),
        ("train.num_epochs=five", 'train.num_epochs: expected an integer, got "five"'),
        ("train.num_epoch=5", "train.num_epoch: unknown key; did you mean 'num_epochs'?"),
        ("train.optimizer.lr=NaN", "train.optimizer.lr: expected a number"),
        ("name.first=5", "'name' is not an object"),
        ("model.num_layers=1000000000", "model.num_layers:"),
    ],
)
def test_a_faulty_override_is_refused(assignment: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(write(tmp_path, json.dumps(GOOD)), [assignment])
    assert expected in str(error.value)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
