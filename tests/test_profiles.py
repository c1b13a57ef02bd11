"""Ranges of sizes that engines are compiled for: what is chosen, what fits, what is refused."""

from __future__ import annotations

import pytest
from compiled_networks import AUDIO, LEAST, PICTURES, PROFILES
from hypothesis import given
from hypothesis import strategies as st

from merfast.errors import ConfigError
from merfast.runtime.profiles import check_profiles, fitting, profiles_of


def test_profiles_of_audio() -> None:
    got = profiles_of(AUDIO, {"batch": 32, "samples": 256_000}, budget=32 * 64_000)
    assert got == (
        {"batch": (1, 1, 1), "samples": (LEAST, 64_000, 256_000)},
        {"batch": (1, 32, 32), "samples": (LEAST, 64_000, 64_000)},
        {"batch": (1, 8, 8), "samples": (LEAST, 256_000, 256_000)},
    )
    assert profiles_of(AUDIO, {"batch": 1, "samples": 40}) == ({"batch": (1, 1, 1), "samples": (LEAST, 12, 40)},)


def test_profiles_of_pictures() -> None:
    assert profiles_of(PICTURES, {"pictures": 256}) == (
        {"pictures": (1, 1, 1)},
        {"pictures": (1, 32, 32)},
        {"pictures": (1, 256, 256)},
    )
    assert profiles_of(PICTURES, {"pictures": 1}) == ({"pictures": (1, 1, 1)},)
    assert profiles_of(PICTURES, {"pictures": 256}, budget=100)[-1] == {"pictures": (1, 100, 100)}


@given(st.data())
def test_what_is_in_the_budget_fits_a_profile(data: st.DataObject) -> None:
    largest = {"batch": data.draw(st.integers(1, 64)), "samples": data.draw(st.integers(LEAST, 5000))}
    budget = data.draw(st.integers(largest["samples"], 64 * 5000))
    profiles = profiles_of(AUDIO, largest, budget)
    check_profiles(AUDIO, profiles)
    assert 1 <= len(profiles) <= 3
    for profile in profiles:
        assert profile["batch"][2] * profile["samples"][2] <= budget
    sizes = {axis: data.draw(st.integers(AUDIO.least[axis], most)) for axis, most in largest.items()}
    short = max(LEAST, largest["samples"] // 4)
    if sizes["batch"] * (short if sizes["samples"] <= short else largest["samples"]) <= budget:
        chosen = profiles[fitting(profiles, sizes)]
        assert all(chosen[axis][0] <= size <= chosen[axis][2] for axis, size in sizes.items())


def test_the_smallest_profile_is_chosen() -> None:
    def chosen(batch: int, samples: int) -> int:
        return fitting(PROFILES, {"batch": batch, "samples": samples})

    assert [chosen(1, 16), chosen(1, 64), chosen(2, 16), chosen(2, 17), chosen(8, 12), chosen(4, 64)] == [
        *(0, 0, 1, 2, 1, 2)
    ]
    said = "got sizes batch 5, samples 17, expected batch 1 to 1, samples 12 to 64; or batch 1 to 8, samples 12 to 16; "
    with pytest.raises(ConfigError, match=f"{said}or batch 1 to 4, samples 12 to 64"):
        chosen(5, 17)
    with pytest.raises(ConfigError, match="samples 11, expected"):
        chosen(1, 11)


def test_profiles_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"largest sizes: got \['batch'\], expected \['batch', 'samples'\]"):
        profiles_of(AUDIO, {"batch": 2})
    with pytest.raises(ConfigError, match="largest size of 'samples': got 11, expected at least 12"):
        profiles_of(AUDIO, {"batch": 2, "samples": 11})
    with pytest.raises(ConfigError, match="budget: got 63, expected at least 64, that of one longest row"):
        profiles_of(AUDIO, {"batch": 2, "samples": 64}, budget=63)
    with pytest.raises(ConfigError, match="profiles: got none"):
        check_profiles(AUDIO, ())
    with pytest.raises(ConfigError, match=r"profile: got axes \['batch'\], expected \['batch', 'samples'\]"):
        check_profiles(AUDIO, [{"batch": (1, 1, 1)}])
    with pytest.raises(ConfigError, match="profile of 'samples': got 4, 16, 64, expected them ascending from 12 on"):
        check_profiles(AUDIO, [{"batch": (1, 1, 1), "samples": (4, 16, 64)}])
    with pytest.raises(ConfigError, match="profile of 'batch': got 2, 1, 4, expected them ascending from 1 on"):
        check_profiles(AUDIO, [{"batch": (2, 1, 4), "samples": (16, 16, 64)}])
