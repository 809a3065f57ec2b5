"""Which models there are on the Hub and in the cache, and what a model is without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from zoo.errors import BundleError, NetworkError, ZooError
from zoo.files import read_regular
from zoo.hub.client import LIBRARY, HTTPError, Hub, patiently, plain_errors
from zoo.hub.config import CONFIG_FILE, WEIGHTS_FILE, BundleConfig, parse_config
from zoo.hub.pull import Pulled
from zoo.json_object import MAX_JSON_BYTES

MAX_LISTED = 1000


class RemoteModel(TypedDict):
    """A model on the Hub: name, data sets of its card, downloads in the last month, day of the latest commit."""

    repository: str
    datasets: list[str]
    downloads: int
    changed: str
    is_private: bool


class CachedModel(TypedDict):
    """A whole bundle in the cache, and the names that mean its commit, sorted; none if none does any more."""

    repository: str
    revisions: list[str]
    commit: str
    recipe: str
    num_bytes: int
    folder: str


def list_remote(
    hub: Hub, *, author: str | None = None, search: str | None = None, dataset: str | None = None
) -> list[RemoteModel]:
    """The models of this library on the Hub, those most downloaded first; by default those of all users.

    Only those whose name holds the text ``search``, and whose card names the data set.

    Raises:
        ZooError: if the Hub cannot be reached or refuses the token.
    """
    if hub.is_offline:
        raise NetworkError("list --remote: offline the Hub is not asked; try: revgnn-zoo list --cached")
    with plain_errors(hub, "list --remote"):
        tags = [LIBRARY, *([f"dataset:{dataset}"] if dataset else [])]
        found = list(hub.api.list_models(filter=tags, author=author, search=search, sort="downloads", limit=MAX_LISTED))
        return [
            RemoteModel(
                repository=info.id,
                datasets=[tag.partition(":")[2] for tag in info.tags or () if tag.startswith("dataset:")],
                downloads=info.downloads or 0,
                changed=info.last_modified.date().isoformat() if info.last_modified else "",
                is_private=bool(info.private),
            )
            for info in found
        ]


def list_cached(hub: Hub) -> list[CachedModel]:
    """The whole bundles in the cache, by name; repositories of other kinds are passed over."""
    try:
        repositories = scan_cache_dir(hub.cache).repos
    except CacheNotFound:
        return []
    except ValueError as error:
        raise ZooError(f"{hub.cache}: the cache is not a folder; HF_HUB_CACHE or HF_HOME names it") from error
    models = []
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type != "model":
            continue
        for revision in sorted(repository.revisions, key=lambda revision: revision.last_modified, reverse=True):
            config = _bundle_in(revision.snapshot_path)
            if config is not None:
                model = CachedModel(
                    repository=repository.repo_id,
                    revisions=sorted(revision.refs),
                    commit=revision.commit_hash,
                    recipe=config.recipe.name,
                    num_bytes=config.weights.num_bytes,
                    folder=str(revision.snapshot_path),
                )
                models.append(model)
    return models


def weights_header(hub: Hub, pulled: Pulled) -> dict[str, int]:
    """Parameters by type, read from the header of the weights alone; empty offline.

    Raises:
        ZooError: if the Hub cannot be reached, or the weights are not a safetensors file.
    """
    if hub.is_offline or pulled.is_stale:
        return {}
    where = f"{pulled.reference.at(pulled.commit)}: {WEIGHTS_FILE}"
    repo_id = pulled.reference.repo_id
    with plain_errors(hub, where):
        try:
            header = patiently(
                lambda: hub.api.parse_safetensors_file_metadata(repo_id, WEIGHTS_FILE, revision=pulled.commit)
            )
            return {str(kind): count for kind, count in header.parameter_count.items()}
        except (HTTPError, OSError):
            raise
        except Exception as error:
            # The client takes the entries of a header on trust, and anybody can publish one.
            raise BundleError(f"{where}: not a whole safetensors file") from error


def _bundle_in(folder: Path) -> BundleConfig | None:
    try:
        config = parse_config(read_regular(folder / CONFIG_FILE, max_bytes=MAX_JSON_BYTES), where=str(folder))
        is_whole = (folder / WEIGHTS_FILE).stat().st_size == config.weights.num_bytes
    except (OSError, BundleError):
        return None
    return config if is_whole else None
