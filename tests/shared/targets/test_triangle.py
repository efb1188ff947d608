"""The order in which a triangle is kept, by one definition: numpy, torch, one row, all rows."""

import numpy as np
import pytest
import torch

from shared.targets.numbers.similarity import pairs_on, square_from_triangle
from shared.targets.numbers.triangle import (
    pairs_of,
    patches_of_triangle,
    places_of,
    square_of,
    triangle_length,
    triangle_row,
)

pytestmark = pytest.mark.unit
SIZES = [1, 2, 3, 7, 24]


def symmetric(patches):
    random = np.random.default_rng(patches)
    matrix = random.random((patches, patches)).astype(np.float32)
    matrix += matrix.T
    np.fill_diagonal(matrix, 1)
    return matrix


@pytest.mark.parametrize("patches", SIZES)
def test_pairs_go_row_by_row_above_the_diagonal(patches):
    rows, columns = pairs_of(patches)
    expected = [(i, j) for i in range(patches) for j in range(i + 1, patches)]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert len(rows) == triangle_length(patches)
    assert patches_of_triangle(len(rows)) == patches
    assert not rows.flags.writeable
    assert not columns.flags.writeable
    for mine, theirs in zip(pairs_on(patches, torch.device("cpu")), (rows, columns), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


@pytest.mark.parametrize("patches", SIZES)
def test_a_triangle_gives_its_matrix_and_each_row_of_it(patches):
    matrix = symmetric(patches)
    triangle = matrix[np.triu_indices(patches, 1)]
    np.testing.assert_array_equal(matrix.ravel()[places_of(patches)], triangle)
    np.testing.assert_array_equal(square_of(triangle), matrix)
    assert square_of(triangle).dtype == np.float32
    np.testing.assert_array_equal(
        square_from_triangle(torch.from_numpy(triangle)[None])[0].numpy(), matrix
    )
    for row in range(patches):
        np.testing.assert_array_equal(triangle_row(triangle, row), matrix[row])
    half = triangle_row(triangle.astype(np.float16), 0)
    assert half.dtype == np.float16


@pytest.mark.parametrize("length", [2, 4, 5, 7])
def test_another_length_is_no_triangle(length):
    with pytest.raises(ValueError, match="not the length of a triangle"):
        patches_of_triangle(length)
    with pytest.raises(ValueError, match="not the length of a triangle"):
        triangle_row(np.zeros(length), 0)
