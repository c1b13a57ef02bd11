"""Ranges of sizes that an engine is compiled for: which to choose, and which of them to use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from merfast.errors import ConfigError
from merfast.runtime.spec import Profile, Spec

SHORT = 4
"""A batch of short rows has rows up to this part of the longest."""

FEW = 8
"""Where rows have no length, a small batch has this part of the most rows."""


def rows_axis(spec: Spec) -> str:
    """Name of the axis that counts rows (clips, pictures): the first of the first input.

    Raises:
        ConfigError: it does not vary.
    """
    axis = spec.inputs[0].shape[0]
    if not isinstance(axis, str):
        raise ConfigError(f"input {spec.inputs[0].name!r}: got {axis} rows, expected a number that varies")
    return axis


def check_largest(spec: Spec, largest: Mapping[str, int]) -> None:
    """See that `largest` has a size for each axis of a spec that varies, and none below the least.

    Raises:
        ConfigError: it has not.
    """
    if set(largest) != set(spec.least):
        raise ConfigError(f"largest sizes: got {sorted(largest)}, expected {sorted(spec.least)}")
    for axis, size in largest.items():
        if size < spec.least[axis]:
            raise ConfigError(f"largest size of {axis!r}: got {size}, expected at least {spec.least[axis]}")


def profiles_of(spec: Spec, largest: Mapping[str, int], budget: int | None = None) -> tuple[Profile, ...]:
    """Up to three profiles: a single row of any length, a batch of short or few rows, and a batch of any rows.

    The single row is for latency and tuned for a short one. The batches are tuned for their largest sizes. A batch of
    n rows up to length l fits one of them if n <= largest rows, l <= largest length and n' * l' <= budget for l' the
    longest short length, or else the largest.

    Args:
        spec: what the engine computes on; the first axis of its first input counts rows.
        largest: name of each axis that varies -> its largest size.
        budget: largest product of all sizes, which bounds memory: samples in all; by default there is none.

    Raises:
        ConfigError: an axis is missing or unknown, or a largest size is below the least, or above the budget with the
            fewest rows.
    """
    check_largest(spec, largest)
    least, rows = spec.least, rows_axis(spec)
    lengths = [axis for axis in least if axis != rows]
    longest = math.prod(largest[axis] for axis in lengths)
    if budget is None:
        budget = largest[rows] * longest
    if budget < least[rows] * longest:
        raise ConfigError(f"budget: got {budget}, expected at least {least[rows] * longest}, that of one longest row")
    short = {axis: max(least[axis], largest[axis] // SHORT) for axis in lengths}
    profiles: list[Profile] = [
        {rows: (least[rows],) * 3, **{axis: (least[axis], short[axis], largest[axis]) for axis in lengths}}
    ]
    few = largest[rows] if lengths else max(least[rows], largest[rows] // FEW)
    for most, tops in ((few, short), (largest[rows], {axis: largest[axis] for axis in lengths})):
        most = min(most, budget // math.prod(tops.values()))
        batch: Profile = {rows: (least[rows], most, most), **{a: (least[a], top, top) for a, top in tops.items()}}
        if most > least[rows] and batch not in profiles:
            profiles.append(batch)
    return tuple(profiles)


def check_profiles(spec: Spec, profiles: Sequence[Profile]) -> None:
    """See that profiles are for a spec's axes, each least size <= smallest <= usual <= largest.

    Raises:
        ConfigError: they are not, or there is none.
    """
    if not profiles:
        raise ConfigError("profiles: got none, expected at least one")
    for profile in profiles:
        if set(profile) != set(spec.least):
            raise ConfigError(f"profile: got axes {sorted(profile)}, expected {sorted(spec.least)}")
        for axis, (smallest, usual, most) in profile.items():
            if not spec.least[axis] <= smallest <= usual <= most:
                got = f"{smallest}, {usual}, {most}"
                raise ConfigError(f"profile of {axis!r}: got {got}, expected them ascending from {spec.least[axis]} on")


def fitting(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """Index of the profile with the smallest largest sizes (by their product) that takes `sizes`.

    Raises:
        ConfigError: none does.
    """
    fits = [
        index
        for index, profile in enumerate(profiles)
        if all(smallest <= sizes[axis] <= most for axis, (smallest, _, most) in profile.items())
    ]
    if not fits:
        got = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ConfigError(f"got sizes {got}, expected {'; or '.join(map(_text, profiles))}")
    return min(fits, key=lambda index: math.prod(most for _, _, most in profiles[index].values()))


def _text(profile: Profile) -> str:
    return ", ".join(f"{axis} {smallest} to {most}" for axis, (smallest, _, most) in profile.items())
