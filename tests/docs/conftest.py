"""A Hub for the pages that publish."""

from tests.hub.conftest import hf_home, hub, lfs_client, make_hub, use_hub

__all__ = ["hf_home", "hub", "lfs_client", "make_hub", "use_hub"]
