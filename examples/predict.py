"""Load a model in one line and predict: ``python examples/predict.py [FOLDER]``; no folder: a shipped model."""

import sys

import torch

import zoo
from zoo.data.features import build_features

model = zoo.load(sys.argv[1] if len(sys.argv) > 1 else "quickstart")

recipe = model.zoo_info.recipe
graph = build_features(zoo.load_graph(recipe.data.dataset), recipe.data.node_features)
edge_index, edge_attr = zoo.directed_edges(graph)
with torch.no_grad():
    logits = model(graph.x, edge_index, edge_attr if recipe.model.reads_edges else None)

test = graph.splits[recipe.data.split].test
guess, truth = logits[test].argmax(1), graph.y[test]
print(f"{recipe.name}: {len(test)} test nodes, accuracy {(guess == truth).float().mean():.3f}")
print("first ten guesses:", guess[:10].tolist())
print("first ten labels: ", truth[:10].tolist())
