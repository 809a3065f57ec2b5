from types import ModuleType

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from zoo.data.metrics import METRICS, check_metric, evaluate
from zoo.errors import DataError
from zoo.spec.train import METRIC_FACTS

NAN = float("nan")


def test_rocauc_is_the_mean_over_tasks_with_both_classes() -> None:
    y = torch.tensor([[0.0, 1, 1, NAN], [1, 0, 1, NAN], [1, 1, 1, NAN], [0, NAN, 1, NAN]])
    logits = torch.tensor([[0.1, 3.0, 0, 0], [0.4, 1.0, 0, 0], [0.2, 0.5, 0, 0], [0.3, 9.0, 0, 0]])
    expected = (roc_auc_score([0, 1, 1, 0], [0.1, 0.4, 0.2, 0.3]) + roc_auc_score([1, 0, 1], [3.0, 1.0, 0.5])) / 2
    assert METRICS["rocauc"](y, logits) == pytest.approx(expected)
    assert METRICS["rocauc"](y, logits) == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_binary_metrics_ignore_unlabeled_nodes(shape: tuple[int, ...]) -> None:
    y, logits = torch.tensor([0, 1, -1, 1, 0]), torch.tensor([-1.0, 2.0, 5.0, -3.0, -2.0]).view(shape)
    assert METRICS["rocauc"](y, logits) == pytest.approx(roc_auc_score([0, 1, 1, 0], [-1, 2, -3, -2]))
    assert METRICS["accuracy"](y, logits) == 0.75


def test_accuracy_takes_the_largest_logit() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 2], [1, 0, 0]])
    assert METRICS["accuracy"](torch.tensor([0, 2, 2, -1]), logits) == pytest.approx(2 / 3)
    assert METRICS["micro_f1"](torch.tensor([0, 2, 2, -1]), logits) == pytest.approx(2 / 3)


def test_micro_f1_equals_the_one_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(50, 7, generator=generator) < 0.3).float()
    logits = torch.randn(50, 7, generator=generator)
    expected = f1_score(y.numpy(), (logits > 0).numpy(), average="micro")
    assert METRICS["micro_f1"](y, logits) == pytest.approx(expected)
    y[0] = NAN
    expected = f1_score(y[1:].numpy(), (logits[1:] > 0).numpy(), average="micro")
    assert METRICS["micro_f1"](y, logits) == pytest.approx(expected)
    assert METRICS["micro_f1"](torch.zeros(3, 2), torch.full((3, 2), -1.0)) == 0.0


def test_average_precision_is_the_mean_over_tasks_with_both_classes() -> None:
    y = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 1], [0, NAN, 1]])
    logits = torch.tensor([[0.1, 3.0, 0], [0.4, 1.0, 0], [0.2, 0.5, 0], [0.3, 9.0, 0]])
    # Of the first task the positives rank first and third, of the second first and third of three.
    assert METRICS["average_precision"](y, logits) == pytest.approx((1 + 2 / 3) / 2)
    assert METRICS["average_precision"](torch.tensor([1, 0, -1]), torch.tensor([1.0, 2, 3])) == pytest.approx(0.5)


def test_macro_f1_counts_every_class_alike() -> None:
    y = torch.tensor([0, 0, 0, 1, 2, -1])
    logits = torch.eye(3)[[0, 0, 1, 1, 0, 2]]
    # F1 of the classes: 2 of 3 right among 3 predicted, 1 of 1 among 2, none.
    assert METRICS["macro_f1"](y, logits) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    labels = torch.tensor([[1.0, 0], [1, 1], [NAN, 1]])
    guesses = torch.tensor([[1.0, -1], [-1, 1], [1, -1]])
    assert METRICS["macro_f1"](labels, guesses) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert METRICS["macro_f1"](torch.tensor([1, 1, 0]), torch.tensor([1.0, -1, -1])) == pytest.approx(2 / 3)


def test_mcc_is_the_correlation_of_classes() -> None:
    y, guess = torch.tensor([1, 1, 1, 0, 0, -1]), torch.tensor([1.0, 1, -1, -1, 1, 1])
    # (TP * TN - FP * FN) / sqrt of the product of the four margins
    assert METRICS["mcc"](y, guess) == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    assert METRICS["mcc"](y, -guess) == pytest.approx(-((2 * 1 - 1 * 1) / 36**0.5))
    assert METRICS["mcc"](y, torch.ones(6)) == 0


def test_errors_of_numbers_leave_out_what_is_not_known() -> None:
    y = torch.tensor([[1.0, 10], [3, NAN], [5, 20]])
    logits = torch.tensor([[2.0, 10], [3, 99], [2, 16]])
    assert METRICS["mae"](y, logits) == pytest.approx((1 + 0 + 3 + 0 + 4) / 5)
    assert METRICS["rmse"](y, logits) == pytest.approx(((1 + 9 + 16) / 5) ** 0.5)
    assert METRICS["r2"](y, logits) == pytest.approx(((1 - 10 / 8) + (1 - 16 / 50)) / 2)
    assert METRICS["r2"](y[:, :1], torch.full((3, 1), 3.0)) == pytest.approx(0)
    with pytest.raises(DataError, match="r2 is not defined: the numbers of these nodes do not differ"):
        METRICS["r2"](torch.ones(3, 1), torch.rand(3, 1))


def of_classes(metric: str) -> bool:
    return not {"multilabel", "regression"} & set(METRIC_FACTS[metric].tasks)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_without_labels_is_an_error(metric: str) -> None:
    with pytest.raises(DataError, match=f"{metric} is not defined"):
        METRICS[metric](torch.tensor([-1] * 3) if of_classes(metric) else torch.full((3, 2), NAN), torch.zeros(3, 2))


def test_areas_of_one_class_are_an_error() -> None:
    for metric in ("rocauc", "average_precision"):
        with pytest.raises(DataError, match=f"{metric} is not defined: no task has labels of both classes"):
            METRICS[metric](torch.ones(3, 2), torch.rand(3, 2))


@pytest.mark.parametrize("metric", METRICS)
def test_predictions_that_are_not_finite_are_counted(metric: str) -> None:
    y = torch.tensor([0, 1, 1]) if of_classes(metric) else torch.tensor([[0.0], [1], [1]])
    with pytest.raises(DataError, match="2 of 3 predictions are NaN or infinite"):
        METRICS[metric](y, torch.tensor([[NAN], [float("inf")], [0.0]]))


def test_shapes_must_fit() -> None:
    with pytest.raises(DataError, match=r"labels \[4, 2\] do not go with predictions \[4, 3\]"):
        METRICS["rocauc"](torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(DataError, match="4 labels do not go with 3 predictions"):
        evaluate("accuracy", torch.zeros(4, dtype=torch.int64), torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_metrics_are_those_of_the_evaluators_of_ogb(dtype: torch.dtype, nodeproppred: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(200, 112, generator=generator) < 0.2).float()
    logits = torch.randn(200, 112, generator=generator).to(dtype)
    y[:, 3] = 0
    y[5, 4] = NAN
    theirs = nodeproppred.Evaluator("ogbn-proteins").eval({"y_true": y.numpy(), "y_pred": logits.float().numpy()})
    assert evaluate("rocauc", y, logits) == theirs["rocauc"]
    classes = torch.randint(40, (200,), generator=generator)
    classes[:100] = -1
    logits = torch.randn(200, 40, generator=generator).to(dtype)
    known = {"y_true": classes[100:, None].numpy(), "y_pred": logits.float()[100:].argmax(1, keepdim=True).numpy()}
    assert evaluate("accuracy", classes, logits) == nodeproppred.Evaluator("ogbn-arxiv").eval(known)["acc"]


def test_a_metric_that_does_not_fit_the_task_is_refused() -> None:
    for metric, (tasks, *_) in METRIC_FACTS.items():
        for task in tasks:
            check_metric(task, metric)
    with pytest.raises(DataError, match="'rocauc' does not fit a multiclass task; use accuracy, micro_f1, macro"):
        check_metric("multiclass", "rocauc")
    for call in (lambda: check_metric("binary", "f2"), lambda: evaluate("f2", torch.ones(1), torch.ones(1))):
        with pytest.raises(DataError, match="unknown metric 'f2'; there are rocauc, average_precision, accuracy"):
            call()
