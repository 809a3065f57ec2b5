"""The stacks of all families, drawn one layer each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gallery import words
from gallery.canvas import CENTER, LEFT, RIGHT, Canvas
from zoo.spec.conv import GenConvSpec
from zoo.spec.model import (
    DeqSpec,
    GCNIISpec,
    OscillatorSpec,
    PhantomSpec,
    ResSpec,
    ReversibleSolver,
    RevGATSpec,
    RevSpec,
)

GAP = 24.0
_MOST_LANES = 4
_MOST_CHARACTERS = 52
_SUBSCRIPTS = str.maketrans("0123456789G", "₀₁₂₃₄₅₆₇₈₉ɢ")
_CONVS = {
    "gen": "GENConv",
    "gcn": "GCNConv",
    "sage": "SAGEConv",
    "gat": "GATConv",
    "gin": "GINConv",
    "gine": "GINEConv",
    "gatv2": "GATv2Conv",
    "transformer": "TransformerConv",
    "pna": "PNAConv",
    "res_gated": "ResGatedGraphConv",
    "general": "GeneralConv",
    "graph": "GraphConv",
    "cheb": "ChebConv",
    "tag": "TAGConv",
    "film": "FiLMConv",
    "le": "LEConv",
}
NORMS = {"layer": "LayerNorm", "batch": "BatchNorm"}
_SOLVERS = {"anderson": "Anderson acceleration", "broyden": "Broyden's method", "picard": "plain iteration"}


def chain(*steps: str) -> str:
    """Steps in their order, without those that there are not."""
    return " → ".join(step for step in steps if step)


def dropout_in_words(rate: float) -> str:
    """A dropout as a step; empty if nothing is dropped."""
    return f"dropout {rate:g}" if rate else ""


def _conv_name(model: Any) -> str:
    conv = model.conv.type
    heads = getattr(model.conv, "num_heads", None)
    name = _CONVS.get(conv, conv)
    if isinstance(model.conv, GenConvSpec):
        return f"{name} ({model.conv.aggr.type})"
    return name if heads is None else f"{name} ({words.count(heads, 'head')})"


def _repeats(model: RevSpec | ResSpec | OscillatorSpec) -> tuple[str, str]:
    """How often a layer is applied, and whose weights it has."""
    distinct = model.num_distinct_layers
    times = f"× {model.num_layers:,}"
    if distinct is None:
        return times, ""
    shared = "one set of weights for all of them" if distinct == 1 else f"{distinct:,} sets of weights, in turn"
    return times, shared


def _rev(canvas: Canvas, model: RevSpec, y: float, x: float) -> float:
    times, shared = _repeats(model)
    function = chain(NORMS[model.norm], "ReLU", dropout_in_words(model.dropout), _conv_name(model))
    return _coupling(canvas, model, y, x, times, [*_two_lines(f"f: {function}"), shared])


def _rev_gat(canvas: Canvas, model: RevGATSpec, y: float, x: float) -> float:
    attention = f"attention ({words.count(model.num_heads, 'head')})"
    function = chain(NORMS[model.norm], "ReLU", dropout_in_words(model.dropout), attention)
    notes = _two_lines(f"f: {function}")
    if model.edge_dropout:
        notes.append(f"each layer leaves out {100 * model.edge_dropout:g} % of the edges in training")
    return _coupling(canvas, model, y, x, f"× {model.num_layers - 2:,}", notes)


def _coupling(
    canvas: Canvas, model: RevSpec | RevGATSpec, y: float, x: float, times: str, notes: Sequence[str]
) -> float:
    """A reversible layer: the groups as lanes, each with a sum of what the lane before it gives."""
    groups = model.num_groups
    # Of many groups the first two and the last are drawn.
    lanes = list(range(1, groups + 1)) if groups <= _MOST_LANES else [1, 2, 0, groups]
    step, spread = 52.0, (RIGHT - LEFT - 108) / (len(lanes) - 1)
    at = [LEFT + 54 + spread * index for index in range(len(lanes))]
    notes = [note for note in notes if note]
    reversible = model.reversible
    backward = ["backward: " + _inverse(groups)] if reversible else ["plain autograd, for comparison"]
    top = y + GAP
    first, last = top + 76, top + 76 + step * len(lanes)
    height = last + 40 + 18 * (len(notes) + 1) - top
    canvas.frame(top, height, "reversible layer" if reversible else "coupled layer", times, _copies(times))
    canvas.line((x, y), (x, top), arrow=True)
    width = model.hidden_channels // groups
    for lane, place in zip(lanes, at, strict=True):
        if not lane:
            canvas.text(place, first + step, "⋯")
            continue
        canvas.line((place, first - 12), (place, last - 12), arrow=True)
        canvas.text(place, first - 18, _group("x", lane, groups))
        canvas.text(place, last + 4, _group("y", lane, groups))
    canvas.text(at[0] + 16, first - 18, f"[N, {width:,}]", "note", "start")
    for index, (lane, place) in enumerate(zip(lanes, at, strict=True)):
        row = first + 10 + step * index
        if lane:
            _block(canvas, at, index, place, row, _group("f", lane, groups), groups)
    for index, note in enumerate([*notes, *backward]):
        kind = "note" if index >= len(notes) else "small"
        canvas.text(CENTER, last + 30 + 18 * index, note, kind)
    return top + height


def _block(canvas: Canvas, at: Sequence[float], index: int, place: float, row: float, name: str, groups: int) -> None:
    """One f of a reversible layer, from the lanes that it reads to the sum on its own lane."""
    if index:
        source, middle, side = at[index - 1], (at[index - 1] + place) / 2, -1
        canvas.dot(source, row)
        canvas.line((source, row), (middle - 17, row), arrow=True)
    else:
        # The first group reads the sum of all others.
        source, middle, side = at[-1], (at[0] + at[1]) / 2, 1
        for other in at[1:]:
            canvas.dot(other, row)
        canvas.line((source, row), (middle + 17, row), arrow=True)
        if groups > 2:
            canvas.text((at[1] + at[-1]) / 2, row - 7, "sum of the others", "note over")
    canvas.box(middle - 17, row - 14, 34, 28, "block")
    canvas.text(middle, row + 5, name)
    canvas.line((middle - 17 * side, row), (place + 10 * side, row), arrow=True)
    canvas.plus(place, row)


def _group(letter: str, index: int, groups: int) -> str:
    text = "G" if groups > _MOST_LANES and index == groups else str(index)
    return letter + text.translate(_SUBSCRIPTS)


def _inverse(groups: int) -> str:
    if groups == 2:
        return "x₂ = y₂ − f₂(y₁), then x₁ = y₁ − f₁(x₂)"
    return "xᵢ = yᵢ − fᵢ(yᵢ₋₁), from the last to the first"


def _two_lines(text: str) -> list[str]:
    """A chain of steps, cut before its last one if it is too long for the drawing."""
    if len(text) <= _MOST_CHARACTERS:
        return [text]
    head, last = text.rsplit(" → ", 1)
    return [head, f"→ {last}"]


def _copies(times: str) -> int:
    return 0 if times in ("× 0", "× 1") else 2


def _res(canvas: Canvas, model: ResSpec, y: float, x: float) -> float:
    if model.norm_position == "post":
        return _post_norm(canvas, model, y, x)
    steps = [step for step in (NORMS[model.norm], "ReLU", dropout_in_words(model.dropout), _conv_name(model)) if step]
    top = y + GAP
    first = top + 62
    end = first + 22 + 40 * len(steps)
    notes = ["the first layer is its convolution alone", *_res_notes(model)]
    bottom = _repeated(canvas, model, x, top, end + 34 - top, notes)
    lane, branch = LEFT + 90, LEFT + 240
    canvas.text(lane, first - 8, "h")
    canvas.line((lane, first), (lane, end + 22), arrow=True)
    canvas.dot(lane, first + 8)
    canvas.line((lane, first + 8), (branch, first + 8), (branch, first + 22), arrow=True)
    _boxes(canvas, branch, first + 22, 176, steps)
    # From the last box back to the sum.
    canvas.line((branch, end - 12), (branch, end + 2), (lane + 10, end + 2), arrow=True)
    canvas.plus(lane, end + 2)
    return bottom


def _post_norm(canvas: Canvas, model: ResSpec, y: float, x: float) -> float:
    """The residual layer whose norm comes last: ReLU(norm(conv(u) + W u + b)) of u = dropout(h)."""
    top = y + GAP
    bottom = _repeated(canvas, model, x, top, 252, _res_notes(model))
    left, right, row = LEFT + 96, RIGHT - 96, top + 62
    canvas.text(CENTER, row - 8, "h")
    canvas.line((CENTER, row - 3), (CENTER, row + 12), arrow=True)
    end = _boxes(canvas, CENTER, row + 12, 140, [dropout_in_words(model.dropout) or "no dropout"])
    canvas.dot(CENTER, end + 10)
    canvas.line((CENTER, end), (CENTER, end + 10))
    for place, step in ((left, "linear"), (right, _conv_name(model))):
        canvas.line((CENTER, end + 10), (place, end + 10), (place, end + 26), arrow=True)
        _boxes(canvas, place, end + 26, 150, [step])
        toward = CENTER - 10 if place == left else CENTER + 10
        canvas.line((place, end + 54), (place, end + 72), (toward, end + 72), arrow=True)
    canvas.plus(CENTER, end + 72)
    canvas.line((CENTER, end + 81), (CENTER, end + 98), arrow=True)
    _boxes(canvas, CENTER, end + 98, 190, [chain(NORMS[model.norm], "ReLU")])
    return bottom


def _res_notes(model: ResSpec) -> list[str]:
    memory = "backward computes the insides of each layer again" if model.checkpoint else ""
    return [note for note in (_repeats(model)[1], memory) if note]


def _repeated(canvas: Canvas, model: Any, x: float, top: float, height: float, notes: Sequence[str]) -> float:
    """The frame of a layer under plain autograd, with notes at its bottom; returns its lower edge."""
    times = f"× {model.num_layers:,}"
    whole = height + 18 * len(notes)
    canvas.frame(top, whole, f"{words.FAMILIES.get(model.type, model.type)} layer", times, _copies(times))
    canvas.line((x, top - GAP), (x, top), arrow=True)
    for index, note in enumerate(notes):
        canvas.text(CENTER, top + height + 6 + 18 * index, note, "small")
    return top + whole


def _boxes(canvas: Canvas, x: float, y: float, width: float, steps: Sequence[str]) -> float:
    """Boxes below each other, joined by arrows; returns the lower edge of the last."""
    for index, step in enumerate(steps):
        place = y + 40 * index
        canvas.box(x - width / 2, place, width, 28, "block")
        canvas.text(x, place + 19, step)
        if index:
            canvas.line((x, place - 12), (x, place), arrow=True)
    return y + 40 * len(steps) - 12


def _gcnii(canvas: Canvas, model: GCNIISpec, y: float, x: float) -> float:
    top = y + GAP
    steps = [
        dropout_in_words(model.dropout),
        f"{1 - model.alpha:g} P h + {model.alpha:g} h₀",
        "(1 − β) I + β W",
        "ReLU",
    ]
    steps = [step for step in steps if step]
    notes = [
        "P: normalized adjacency; h₀: ReLU of the encoder",
        f"β = log(1 + {model.theta:g} / l) in layer l",
    ]
    bottom = _repeated(canvas, model, x, top, 94 + 40 * len(steps), notes)
    canvas.text(CENTER, top + 54, "h")
    canvas.line((CENTER, top + 59), (CENTER, top + 74), arrow=True)
    end = _boxes(canvas, CENTER, top + 74, 190, steps)
    # The encoded nodes enter every layer.
    row = top + 74 + 40 * steps.index(f"{1 - model.alpha:g} P h + {model.alpha:g} h₀") + 14
    canvas.text(RIGHT - 30, row + 5, "h₀")
    canvas.line((RIGHT - 42, row), (CENTER + 95, row), arrow=True)
    canvas.line((CENTER, end), (CENTER, end + 15), arrow=True)
    return bottom


def _oscillator(canvas: Canvas, model: OscillatorSpec, y: float, x: float) -> float:
    """A step: the velocities are driven by the positions, then the positions move."""
    times, shared = _repeats(model)
    function = chain(NORMS[model.norm], "ReLU", dropout_in_words(model.dropout), _conv_name(model))
    step, keep = model.step_size, 1 - model.damping * model.step_size
    lines = [
        f"v′ = {keep:g} v + {step:g} (tanh(f(x)) − {model.stiffness:g} x)",
        f"x′ = x + {step:g} v′",
    ]
    notes = [*_two_lines(f"f: {function}"), shared, "backward: x, then v, undone to the last bit"]
    notes = [note for note in notes if note]
    top = y + GAP
    height = 100 + 40 * len(lines) + 18 * len(notes)
    canvas.frame(top, height, "oscillator step", times, _copies(times))
    canvas.line((x, y), (x, top), arrow=True)
    canvas.text(CENTER, top + 54, f"x, v: [N, {model.hidden_channels // 2:,}] each")
    canvas.line((CENTER, top + 59), (CENTER, top + 74), arrow=True)
    end = _boxes(canvas, CENTER, top + 74, 330, lines)
    for index, note in enumerate(notes):
        canvas.text(CENTER, end + 24 + 18 * index, note, "note" if index == len(notes) - 1 else "small")
    return top + height


def _deq(canvas: Canvas, model: DeqSpec, y: float, x: float) -> float:
    solver, notes = model.solver, _solver_notes(model)
    top = y + GAP
    rows = [
        f"z′ = {_conv_name(model)} of z",
        chain("z′ + u", "LayerNorm", "ReLU", dropout_in_words(model.dropout)),
        _conv_name(model),
        chain("+ z′", "ReLU", "LayerNorm"),
    ]
    first = top + 44 + 18 * len(notes) + 36
    block = 34 + 22 * len(rows)
    height = first + block + 62 - top
    canvas.frame(top, height, "equilibrium layer", f"≤ {solver.max_iters:,} iterations", 0)
    canvas.line((x, y), (x, top), arrow=True)
    for index, note in enumerate(notes):
        canvas.text(LEFT + 14, top + 46 + 18 * index, note, "small", "start")
    left, right = LEFT + 14, RIGHT - 52
    middle, text = CENTER, (left + right) / 2
    canvas.text(middle, first - 30, "u, the encoded nodes")
    canvas.line((middle, first - 24), (middle, first), arrow=True)
    canvas.box(left, first, right - left, block, "block")
    canvas.text(left + 12, first + 20, "f(z, u)", "title", "start")
    for index, row in enumerate(rows):
        canvas.text(text, first + 42 + 22 * index, row)
    # The new state goes around and into the block again.
    bottom = first + block
    turn, loop = bottom + 14, right + 26
    canvas.line((middle, bottom), (middle, top + height))
    canvas.dot(middle, turn)
    canvas.line((middle, turn), (loop, turn), (loop, first + 14), (right, first + 14), arrow=True)
    canvas.text(loop + 8, first + block / 2, "z", "", "start")
    stop = f"relative residual below {solver.tol:g}"
    width = 24 + 7.4 * len(stop)
    canvas.box(middle - width / 2, turn + 11, width, 24, "badge", 12)
    canvas.text(middle, turn + 27, stop, "badge-text")
    return top + height


def _solver_notes(model: DeqSpec) -> list[str]:
    solver = model.solver
    if isinstance(solver, ReversibleSolver):
        notes = [f"two damped iterations in turn, β = {solver.beta:g}", "gradient: the iterations, undone one by one"]
    else:
        history = f", {solver.history} differences kept" if solver.history else ""
        notes = [f"solver: {_SOLVERS[solver.type]}{history}"]
        backward = solver.backward
        if isinstance(backward, PhantomSpec):
            notes.append(f"phantom gradient of {words.count(backward.num_steps, 'term')}")
        elif backward is not None:
            notes.append(f"implicit gradient: {_SOLVERS[backward.type]}")
    if model.weight_norm != "none":
        kind = "weight" if model.weight_norm == "weight" else "spectral"
        notes.append(f"{kind} normalization of every linear map")
    return notes


def draw_other(canvas: Canvas, model: Any, y: float, x: float) -> float:
    """A family that has no drawing of its own: its name, depth and width."""
    bottom = _repeated(canvas, model, x, y + GAP, 66, [])
    canvas.text(LEFT + 14, y + GAP + 48, f"{model.hidden_channels:,} channels", "small", "start")
    return bottom


STACKS: dict[str, Callable[[Canvas, Any, float, float], float]] = {
    "rev": _rev,
    "res": _res,
    "deq": _deq,
    "oscillator": _oscillator,
    "gcnii": _gcnii,
    "rev_gat": _rev_gat,
}
