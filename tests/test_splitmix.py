"""The one counter-based random function is the published one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.splitmix import splitmix64
from tests.oracles import data as oracle


@settings(deadline=None, derandomize=True)
@given(st.integers(-(2**63), 2**63 - 1))
def test_each_word_is_the_published_one(word):
    assert splitmix64(torch.tensor([word])).item() % 2**64 == oracle.splitmix64(word)
