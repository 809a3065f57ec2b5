"""The errors that a user can cause; each knows the exit code of the command line."""

import difflib
from collections.abc import Iterable


class ZooWarning(UserWarning):
    """A thing that a user should know although work goes on; the command line shows it as one line."""


class ZooError(Exception):
    """A fault with one clear line: where it is, what is wrong, what would be right; or several faults, a line each."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class RecipeError(ZooError):
    """A recipe, an override or a bundle's configuration that cannot be read."""


class DataError(ZooError):
    """A data set or a user's graph that is missing, damaged or does not fit."""


class BackendError(ZooError):
    """A kernel backend that cannot serve the tensors at hand."""


class RunError(ZooError):
    """A run directory that cannot be used, or a training run that had to stop."""


class OutOfMemoryError(RunError):
    """A computation that needs more memory than the machine or the GPU has."""


class BundleError(ZooError):
    """A bundle whose files are missing, damaged or do not belong together."""

    exit_code = 5


class NotFoundError(ZooError):
    """A name, repository, revision or file that does not exist."""

    exit_code = 3


class AccessError(ZooError):
    """A repository that the user may not read or write."""

    exit_code = 4


class NetworkError(ZooError):
    """A host that could not be reached and nothing in the cache to fall back on."""

    exit_code = 6


def nearest(name: str, choices: Iterable[str], otherwise: str = "") -> str:
    """The question whether the nearest of some names was meant, or another text if none is near."""
    # A file from anywhere may hold a name of a million letters.
    near = difflib.get_close_matches(name[:100], choices, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
