"""Everything merfast raises on purpose derives from `MerfastError`."""

from __future__ import annotations


class MerfastError(Exception):
    """Base class of all errors that merfast raises on purpose."""


class ConfigError(MerfastError, ValueError):
    """An option or argument has a value that merfast cannot work with."""


class MediaError(MerfastError):
    """An item cannot be turned into a prediction; the message starts with the item's name.

    Args:
        source: name of the item, as given by the caller.
        reason: what is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.source, self.reason)


class BundleError(MerfastError):
    """A model directory is missing, incomplete, or not what its config says."""


class UnavailableError(MerfastError):
    """An explicitly chosen device, kernel, decoder or detector does not exist here."""


class OverloadedError(MerfastError):
    """More is asked of an engine than it can do in time; later, or with less, it may do it."""


class DeadlineError(MerfastError):
    """A request was not done by its deadline."""


class UsageError(MerfastError):
    """Something was used after it was closed, or by two threads at once."""


class UntrainedWarning(UserWarning):
    """The loaded bundle has untrained weights: its predictions mean nothing."""
