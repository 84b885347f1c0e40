"""The share of pairs that people confirmed which is linked, and linked rightly."""

import pytest

from tests.bench import identity


@pytest.fixture(scope="module")
def lists() -> identity.Lists:
    found = identity.read_lists()
    if found is None:
        pytest.skip(f"the recorded lists are not in {identity.SHARED}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("with_contracts", [False, True], ids=["names alone", "some contracts"])
def test_links_agree_with_pairs_that_people_confirmed(lists: identity.Lists, with_contracts: bool) -> None:
    contracts = identity.pair_contracts(lists) if with_contracts else []
    quality, _ = identity.measure(lists, contracts)
    assert len(lists.pairs) == 106
    assert quality.precision >= 0.99, quality.wrong
    assert quality.recall >= 0.93, quality.missing
