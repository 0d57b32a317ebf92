"""QuantizationConfig: how the weights on disk are stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_gemma4.config.section import Section

# mode -> allowed bits, allowed group sizes, each with MLX's default first: what mx.quantize takes.
QUANTIZATION_MODES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


@dataclass(frozen=True)
class QuantizationSettings:
    """How one module's weight is stored: what mx.quantized_matmul needs to read it."""

    group_size: int
    bits: int
    mode: str = "affine"


@dataclass(frozen=True)
class QuantizationConfig:
    """Quantization of the checkpoint on disk.

    Attributes:
        group_size: Weights that share a scale, unless overridden.
        bits: Of one weight, unless overridden.
        mode: "affine", "mxfp4", "mxfp8", or "nvfp4", unless overridden.
        overrides: Settings of single modules by the checkpoint's own paths; None for a module that
            is not quantized.
    """

    group_size: int
    bits: int
    mode: str = "affine"
    overrides: Mapping[str, QuantizationSettings | None] = field(default_factory=dict)

    @property
    def default(self) -> QuantizationSettings:
        """Settings of a module without an override."""
        return QuantizationSettings(self.group_size, self.bits, self.mode)


def read_quantization(top: Section) -> QuantizationConfig | None:
    """Return the settings that MLX converters write, under either of two keys."""
    section = top.section("quantization") or top.section("quantization_config")
    if section is None:
        return None
    if (method := section.get("quant_method")) is not None:
        raise section.error(
            "quant_method",
            method,
            "this kind of quantization is not supported yet; use a bfloat16 checkpoint such as "
            "google/gemma-4-12B-it-qat-q4_0-unquantized with --quantize 4, or an mlx-community "
            "conversion",
        )
    default = _read_settings(section)
    overrides: dict[str, QuantizationSettings | None] = {}
    for key, value in section.values.items():
        if isinstance(value, Mapping):
            overrides[key] = _read_settings(Section(value, section.name(key)))
        elif value is False:
            overrides[key] = None
    return QuantizationConfig(default.group_size, default.bits, default.mode, overrides)


def _read_settings(section: Section) -> QuantizationSettings:
    """Return quantization settings; like MLX, what is missing follows from the mode alone."""
    mode = section.get("mode")
    mode = "affine" if mode is None else mode
    if not isinstance(mode, str) or mode not in QUANTIZATION_MODES:
        raise section.error("mode", mode, f"supported are {', '.join(QUANTIZATION_MODES)}")
    bits_allowed, group_sizes_allowed = QUANTIZATION_MODES[mode]
    bits = section.integer("bits", bits_allowed[0])
    group_size = section.integer("group_size", group_sizes_allowed[0])
    for key, value, allowed in (
        ("bits", bits, bits_allowed),
        ("group_size", group_size, group_sizes_allowed),
    ):
        if value not in allowed:
            shown = ", ".join(map(str, sorted(allowed)))
            raise section.error(key, value, f"mode {mode} allows {shown}")
    return QuantizationSettings(group_size, bits, mode)
