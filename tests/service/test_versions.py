"""The policy that decides which versions of a model are served."""

from __future__ import annotations

import pytest
from glowserve_service.versions import VersionPolicy


def chosen(text: str, name: str = "digits") -> list[int]:
    """The versions that a policy serves of 1, 2, 3, 9 and 10, if none is damaged."""
    policy = VersionPolicy.parse(text)
    return policy.candidates(name, [1, 2, 3, 9, 10])[: policy.most(name)]


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("1", [10]),
        ("2", [10, 9]),
        ("9999", [10, 9, 3, 2, 1]),
        ("digits=3", [3]),
        ("digits=2,9", [9, 2]),
        ("2 digits=1", [1]),
        ("2 faces=1", [10, 9]),
        ("faces=1", [10]),
        ("  3   faces=1 digits=2,4 ", [2]),
        ("digits=4", []),
    ],
)
def test_the_newest_versions_are_served_or_the_ones_that_the_policy_names(
    text: str, versions: list[int]
) -> None:
    assert chosen(text) == versions


def test_older_versions_are_candidates_in_case_newer_ones_are_damaged() -> None:
    assert VersionPolicy.parse("1").candidates("digits", [1, 3, 2]) == [3, 2, 1]
    assert VersionPolicy.parse("digits=1,3").candidates("digits", [1, 3, 2]) == [3, 1]


@pytest.mark.parametrize(
    "text", ["", " ", "0", "-1", "1.5", "two", "1 2", "digits", "digits=", "digits=0", "digits=1,", "a/b=1"]
)
def test_a_text_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^versions is '.*'; it must be how many of the newest versions"):
        VersionPolicy.parse(text)


def test_a_model_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="versions is"):
        VersionPolicy.parse("digits=1 digits=2")
