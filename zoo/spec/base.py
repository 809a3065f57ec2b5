"""The ground that every spec stands on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen part of a recipe: exact types, no unknown keys, no NaN or infinity."""

    # Strict, so that "80" for 80 is an error; frozen, because nothing checks a spec again after it was read. Validators
    # are built when they are first used: that of a recipe includes those of its parts, which then need none.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
