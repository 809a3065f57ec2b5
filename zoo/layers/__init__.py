"""Neural network modules with flat keyword arguments, for your own models too."""

from zoo.layers.block import Block, EquilibriumBlock, NodeEncoder
from zoo.layers.conv import GATConv, GCNConv, GENConv, RevGATConv, SAGEConv
from zoo.layers.equilibrium import EquilibriumLayer, FixedPoint, Phantom, Reversible
from zoo.layers.inputs import BlockInputs
from zoo.layers.oscillator import OscillatorStack
from zoo.layers.residual import ResidualStack
from zoo.layers.reversible import ReversibleStack

__all__ = [
    "Block",
    "BlockInputs",
    "EquilibriumBlock",
    "EquilibriumLayer",
    "FixedPoint",
    "GATConv",
    "GCNConv",
    "GENConv",
    "NodeEncoder",
    "OscillatorStack",
    "Phantom",
    "ResidualStack",
    "RevGATConv",
    "Reversible",
    "ReversibleStack",
    "SAGEConv",
]
