import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.patches.packing import PackedLengths, PatchLayout
from tests.oracles.model import patch_spans

starts_of_a_batch = st.integers(1, 30).flatmap(
    lambda length: st.lists(
        st.lists(st.booleans(), min_size=length, max_size=length).map(lambda row: [True, *row[1:]]),
        min_size=1,
        max_size=5,
    )
)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
@settings(deadline=None, derandomize=True)
def test_lengths_end_to_end(lengths):
    packed = PackedLengths.from_lengths(lengths)
    assert packed.lengths == tuple(lengths)
    assert packed.longest == max(lengths)
    assert packed.total == sum(lengths)
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert packed.sequence_ids.tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]


@given(starts_of_a_batch)
@settings(deadline=None, derandomize=True)
def test_layout_is_the_patches_of_each_image_in_order(starts):
    layout = PatchLayout.from_starts(torch.tensor(starts))
    spans = [patch_spans(row) for row in starts]
    assert layout.packed.lengths == tuple(map(len, spans))
    assert list(zip(layout.first.tolist(), layout.last.tolist(), strict=True)) == [
        span for row in spans for span in row
    ]
    before = 0
    for row, patches in zip(layout.rows.tolist(), spans, strict=True):
        assert row == [before + m for m, (first, last) in enumerate(patches) for _ in range(first, last + 1)]
        before += len(patches)


def test_an_image_that_opens_no_patch_at_first_is_a_bug():
    with pytest.raises(AssertionError, match="first token"):
        PatchLayout.from_starts(torch.tensor([[True, False], [False, True]]))


def test_layout_moves_as_a_whole():
    layout = PatchLayout.from_starts(torch.tensor([[True, False, True], [True, True, True]])).to("meta")
    assert layout.packed.lengths == (2, 3)
    tensors = (layout.packed.cu_seqlens, layout.rows, layout.first, layout.last)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
