"""Architecture drawings: a recipe's model as SVG, from its inputs at the top to its logits at the bottom.

Nothing is drawn that the recipe does not say. Colors and fonts come from the style sheet of the page, so that a drawing
follows its theme.
"""

from __future__ import annotations

from html import escape

from gallery import words
from gallery.canvas import CENTER, WIDTH, Canvas
from gallery.stacks import GAP, NORMS, STACKS, chain, draw_other, dropout_in_words
from zoo.spec.model import DeqSpec, Model, OscillatorSpec, ResSpec, RevGATSpec, RevSpec
from zoo.spec.shape import GraphShape


def draw(name: str, model: Model, shape: GraphShape | None) -> str:
    """The drawing of a model.

    Args:
        name: of the recipe, for the description.
        model: of the recipe.
        shape: sizes of its inputs and outputs; None: they depend on the user's data and are drawn as letters.

    Returns:
        An SVG element, with a title and a description for those who do not see it.
    """
    canvas = Canvas()
    features = "F" if shape is None else f"{shape.num_node_features:,}"
    edges = "" if not model.reads_edges else "D" if shape is None else f"{shape.num_edge_features:,}"
    edges = "" if edges == "0" else edges
    tasks = "T" if shape is None else f"{shape.num_tasks:,}"
    y, x = _inputs(canvas, model, features, edges)
    y = STACKS.get(model.type, draw_other)(canvas, model, y, x)
    y = _head(canvas, model, tasks, y)
    title = f"Architecture of {name}"
    description = f"{describe(model)} From {features} node features to {tasks} logits for each node."
    head = (
        f'<svg class="arch" viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}" role="img" '
        f'aria-labelledby="arch-title arch-text">'
        f'<title id="arch-title">{escape(title)}</title><desc id="arch-text">{escape(description)}</desc>'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 .5 8 4 0 7.5z"/></marker></defs>'
    )
    return "\n".join([head, *canvas.parts, "</svg>"])


def describe(model: Model) -> str:
    """The stack of a model in a sentence."""
    if isinstance(model, DeqSpec):
        most = words.count(model.solver.max_iters, "iteration")
        return f"One block of two convolutions, solved for its fixed point in at most {most}."
    layers = words.count(model.num_layers, "layer")
    groups = f" in {model.num_groups} groups of channels" if isinstance(model, RevSpec | RevGATSpec) else ""
    return f"{layers}{groups}, {words.family_in_words(model)}, {model.hidden_channels:,} channels."


def _inputs(canvas: Canvas, model: Model, features: str, edges: str) -> tuple[float, float]:
    """Inputs and encoders; returns the lower edge and the place of the node states."""
    # Edge features enter the layers beside the states, so they have a column of their own.
    x, width = (128.0, 190.0) if edges else (CENTER, 230.0)
    dropped = dropout_in_words(getattr(model, "input_dropout", 0.0))
    note = f"[N, {features}], {dropped}" if dropped else f"[N, {features}]"
    top = canvas.node(x, 2, width, "node features", note, "plain")
    if isinstance(model, RevGATSpec):
        note = f"{features} → {model.hidden_channels:,}"
        title = f"first attention layer, {words.count(model.num_heads, 'head')}"
        canvas.line((x, top), (x, top + GAP), arrow=True)
        return canvas.node(x, top + GAP, width, title, note), x
    canvas.line((x, top), (x, top + GAP), arrow=True)
    bottom = canvas.node(x, top + GAP, width, "node encoder", f"Linear {features} → {model.hidden_channels:,}")
    if edges:
        right = 302.0
        canvas.node(right, 2, 130, "edge features", f"[E, {edges}]", "plain")
        canvas.line((right, top), (right, top + GAP), arrow=True)
        canvas.node(right, top + GAP, 130, "edge encoder", f"Linear {edges} → {model.hidden_channels:,}")
        canvas.line((right, bottom), (right, bottom + GAP), arrow=True)
    return bottom, x


def _head(canvas: Canvas, model: Model, tasks: str, y: float) -> float:
    canvas.line((CENTER, y), (CENTER, y + GAP), arrow=True)
    last = f"Linear {model.hidden_channels:,} → {tasks}"
    if isinstance(model, RevGATSpec):
        last = f"last attention layer {model.hidden_channels:,} → {tasks}"
    dropped = dropout_in_words(getattr(model, "dropout", 0.0))
    if isinstance(model, RevSpec | RevGATSpec | OscillatorSpec) or (
        isinstance(model, ResSpec) and model.norm_position == "pre"
    ):
        steps = chain(NORMS[model.norm], "ReLU", dropped)
    else:
        # What other layers end with is a part of their own drawing; only an equilibrium's has negative values.
        steps = chain("ReLU" if isinstance(model, DeqSpec) else "", dropped)
    y = canvas.node(CENTER, y + GAP, 330, steps or last, last if steps else "")
    canvas.line((CENTER, y), (CENTER, y + GAP), arrow=True)
    return canvas.node(CENTER, y + GAP, 230, "logits", f"[N, {tasks}]", "plain") + 2
