"""Apple's chips: what a roofline must know of them.

Bandwidth is Apple's own figure.  Arithmetic is what the cores do in float32, which is what float16
does on them too: cores x 128 multiply-adds x clock.  From the M5 on, cores have matrix units that
help with prompts, of which Apple names no speed; theirs is derived from a product of 4096 x 4096
matrices on an M5 Max, by cores.

There is no M4 Ultra, and no M5 Ultra has been announced.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A chip in its largest bin.

    Attributes:
        name: As Apple calls it.
        bandwidth_gb_per_s: Of its memory, in 10^9 bytes.
        cores: Of its GPU.
        vector_tflops: Of all cores, in 10^12 operations a second.
        matrix_tflops: Of their matrix units, on bfloat16; None where it has none.
    """

    name: str
    bandwidth_gb_per_s: float
    cores: int
    vector_tflops: float
    matrix_tflops: float | None = None

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bandwidth_gb_per_s * 1e9

    @property
    def prompt_tflops(self) -> float:
        """What products of many rows can use, in 10^12 operations a second."""
        return self.matrix_tflops or self.vector_tflops

    @property
    def architecture(self) -> str:
        """Last letter of the GPU's name in Metal, by which MLX chooses kernels."""
        size = self.name.partition(" ")[2]
        return {"": "g", "Ultra": "d"}.get(size, "s")


CHIPS: tuple[Chip, ...] = (
    Chip("M1", 68.25, 8, 2.6),
    Chip("M1 Pro", 200, 16, 5.3),
    Chip("M1 Max", 400, 32, 10.6),
    Chip("M1 Ultra", 800, 64, 21.2),
    Chip("M2", 100, 10, 3.6),
    Chip("M2 Pro", 200, 19, 6.8),
    Chip("M2 Max", 400, 38, 13.6),
    Chip("M2 Ultra", 800, 76, 27.2),
    Chip("M3", 100, 10, 3.6),
    Chip("M3 Pro", 150, 18, 6.4),
    Chip("M3 Max", 400, 40, 14.2),
    Chip("M3 Ultra", 819, 80, 28.4),
    Chip("M4", 120, 10, 4.0),
    Chip("M4 Pro", 273, 20, 8.1),
    Chip("M4 Max", 546, 40, 16.2),
    Chip("M5", 153, 10, 4.1, 13.8),
    Chip("M5 Pro", 307, 20, 8.2, 27.5),
    Chip("M5 Max", 614, 40, 16.4, 55.0),
)
