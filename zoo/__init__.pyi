# The public names, each with the module that defines it. `__init__.py` reads this list.
from zoo.data.arrays import save_graph as save_graph
from zoo.data.datasets import load_graph as load_graph
from zoo.data.graph import Graph as Graph
from zoo.data.graph import directed_edges as directed_edges
from zoo.errors import ZooError as ZooError
from zoo.models.factory import build_model as build_model
from zoo.spec.recipe import Recipe as Recipe
from zoo.spec.recipe import read_recipe as read_recipe
from zoo.spec.shape import GraphShape as GraphShape
from zoo.spec.shipped import list_models as list_models
from zoo.spec.shipped import list_recipes as list_recipes
from zoo.workflows.create import ZooInfo as ZooInfo
from zoo.workflows.create import create_model as create_model
from zoo.workflows.evaluate import evaluate as evaluate
from zoo.workflows.export import save as save
from zoo.workflows.load import load as load
from zoo.workflows.options import TrainOptions as TrainOptions
from zoo.workflows.predict import predict as predict
from zoo.workflows.publish import push as push
from zoo.workflows.pull import pull as pull
from zoo.workflows.runs import train as train
from zoo.workflows.runs import train_many as train_many

__version__: str
