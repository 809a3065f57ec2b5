"""The citation graphs cora, citeseer and pubmed in their public form: pickles, read without trusting them.

Source: Yang et al., Revisiting semi-supervised learning with graph embeddings, arXiv 1603.08861.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.arrays import multiclass_arrays
from zoo.errors import DataError

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
NUM_VALID = 500
MAX_FILE_BYTES = 256 << 20

Array = np.ndarray[Any, Any]


class _Matrix:
    """Receives the attributes of a pickled sparse matrix and nothing else."""

    def __init__(self, *args: object) -> None:
        self.args = args


def _rebuild(kind: type, base: object, state: object) -> _Matrix:
    """Stand-in for ``copyreg._reconstructor``, which makes objects of plain classes; only matrices are such."""
    if kind is not _Matrix:
        raise pickle.UnpicklingError("an object that is no sparse matrix")
    return _Matrix()


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for ``_codecs.encode``, by which the second pickle protocol stores bytes."""
    return text.encode("latin1")


# The only names that these files need; every other name is refused before it is looked up.
_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    ("copy_reg", "_reconstructor"): _rebuild,
    ("copyreg", "_reconstructor"): _rebuild,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    ("scipy.sparse.csr", "csr_matrix"): _Matrix,
    ("scipy.sparse._csr", "csr_matrix"): _Matrix,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which such a file does not need") from None

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside")


def read_pickle(path: Path) -> Any:
    """Read a file of plain containers, NumPy arrays and sparse matrices.

    Args:
        path: a pickle, possibly of Python 2 and of unknown origin.

    Returns:
        A dense array, or what else is in it.

    Raises:
        DataError: if the file is missing, damaged or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes, so not a file of this data set")
        value = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if isinstance(value, _Matrix):
            import scipy.sparse

            state = value.__dict__
            parts = tuple(np.asarray(state[key]) for key in ("data", "indices", "indptr"))
            shape = state["_shape"] if "_shape" in state else state["shape"]
            return np.asarray(scipy.sparse.csr_matrix(parts, shape=shape).todense())
        return value
    except DataError:
        raise
    except Exception as error:
        # An unpickler on arbitrary bytes may raise nearly anything; nothing it raises means a usable file.
        raise DataError(f"{path}: not read, {error or type(error).__name__}") from error


def planetoid_arrays(folder: Path, name: str) -> dict[str, Array]:
    """Put the files of a data set together, with the public split.

    Args:
        folder: holds ``ind.NAME.x`` and the others.
        name: "cora", "citeseer" or "pubmed".

    Returns:
        Arrays as in ``zoo.data.arrays``. Nodes of citeseer without a description have no features and no label.

    Raises:
        DataError: if the files are missing, damaged, unsafe or do not belong together.
    """
    files = {part: folder / f"ind.{name}.{part}" for part in PARTS}
    parts = {part: read_pickle(path) for part, path in files.items() if part != "test.index"}
    try:
        test = np.array(files["test.index"].read_text(encoding="ascii").split(), dtype=np.int64)
        num_train, num_known = len(parts["y"]), len(parts["ally"])
        first, num_nodes = int(test.min()), int(test.max()) + 1
        if first < num_known or parts["allx"].shape[0] != num_known or len(test) != len(parts["tx"]):
            raise ValueError("the files are of different sizes")
        x = np.zeros((num_nodes, parts["allx"].shape[1]), dtype=np.float32)
        y = np.full(num_nodes, -1, dtype=np.int64)
        x[:num_known], y[:num_known] = parts["allx"], np.asarray(parts["ally"]).argmax(axis=1)
        x[test], y[test] = parts["tx"], np.asarray(parts["ty"]).argmax(axis=1)
        edges = [(int(source), int(target)) for source, targets in parts["graph"].items() for target in targets]
        masks = np.zeros((3, num_nodes), dtype=bool)
        masks[0, :num_train] = True
        masks[1, num_train : num_train + NUM_VALID] = True
        masks[2, test] = True
        return multiclass_arrays(np.array(edges, dtype=np.int64).T, x, y, masks)
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: the files of {name} do not make a graph ({error})") from error
