"""The base of every configuration node: frozen, and a misspelt key is an error, never ignored."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable pydantic model that refuses unknown keys; subclasses live beside the code that they configure."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
