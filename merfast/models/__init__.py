"""The models in plain torch: the reference that everything faster is checked against."""

from merfast.models.model import FusedModel, inputs_of

__all__ = ["FusedModel", "inputs_of"]
