import shutil

import pytest
from mutate_kernels import CALLS, METAL, MUTATIONS, break_source


def test_every_mutated_kernel_has_calls():
    assert MUTATIONS.keys() == CALLS.keys()


@pytest.mark.parametrize("kernel", MUTATIONS)
def test_every_mutation_fits_the_source(tmp_path, kernel):
    """A kernel that changes takes its mutations with it."""
    assert len(MUTATIONS[kernel]) >= 10
    for number, mutation in enumerate(MUTATIONS[kernel].values()):
        copies = shutil.copytree(METAL, tmp_path / str(number))
        break_source(copies, kernel, *mutation)


def test_a_text_that_is_not_there_once_is_an_error(tmp_path):
    shutil.copytree(METAL, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="0 times"):
        break_source(tmp_path, "merge_splits", "no such text", "")
    with pytest.raises(ValueError, match="2 times"):
        break_source(tmp_path, "merge_splits", "s < splits", "s <= splits")
