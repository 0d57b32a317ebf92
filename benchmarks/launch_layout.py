"""Where the elements of a traced array lie: what decides whether MLX's GPU path must copy them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Where the elements of an array lie in its buffer.

    Attributes:
        shape: Of the array.
        strides: In elements.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def rows(cls, shape: Sequence[int]) -> "Layout":
        """Return the layout of a new array: row after row."""
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * shape[axis + 1]
        return cls(tuple(shape), tuple(strides))

    @property
    def is_row_contiguous(self) -> bool:
        """Whether it lies row after row; axes of one element do not matter."""
        fresh = Layout.rows(self.shape).strides
        return all(
            n == 1 or a == b for n, a, b in zip(self.shape, self.strides, fresh, strict=True)
        )

    @property
    def is_contiguous(self) -> bool:
        """Whether it lies without holes and repetitions, in any order of axes."""
        axes = [(s, n) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        expected = 1
        for stride, n in sorted(axes):
            if stride != expected:
                return False
            expected *= n
        return True

    def reshaped(self, shape: Sequence[int]) -> "Layout | None":
        """Return the layout of a view with another shape; None if it must be copied.

        Source: mlx/backend/common/common.cpp, prepare_reshape.
        """
        if self.is_row_contiguous:
            return Layout.rows(shape)
        runs = self._runs()
        strides: list[int] = []
        at = 0
        for n in shape:
            if at < len(runs) and runs[at][0] % n == 0:
                length, stride = runs[at][0] // n, runs[at][1]
                strides.append(length * stride)
                runs[at] = length, stride
                at += length <= 1
            elif n == 1:
                strides.append(strides[-1] if strides else 1)
            else:
                return None
        return Layout(tuple(shape), tuple(strides))

    def _runs(self) -> list[tuple[int, int]]:
        """Return (elements, stride) of axes that can be walked as one, outermost first."""
        runs: list[tuple[int, int]] = []
        for n, stride in zip(self.shape, self.strides, strict=True):
            if n == 1:
                continue
            if runs and runs[-1][1] == n * stride:
                runs[-1] = runs[-1][0] * n, stride
            else:
                runs.append((n, stride))
        return runs
