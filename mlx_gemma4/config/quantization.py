"""QuantizationConfig: how the weights on disk are stored."""

import json
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

_OTHER_KINDS = (
    "this kind of quantization is not supported yet; use a bfloat16 checkpoint such as "
    "google/gemma-4-12B-it-qat-q4_0-unquantized with --quantize 4, or an mlx-community "
    "conversion"
)
# Of compressed-tensors: what is read besides the group size, each with its default there.
_PACKED_WEIGHTS: Mapping[str, tuple[object, object]] = {
    # key -> the only value that is read, the value where the key is missing
    "type": ("int", "int"),
    "num_bits": (4, 8),
    "symmetric": (True, True),
    "strategy": ("group", "group"),
    "dynamic": (False, False),
    "actorder": (None, None),
    "block_structure": (None, None),
}
# Keys that change nothing for a reader: how scales were found, and dtypes that the headers tell.
_UNREAD_WEIGHTS_KEYS = {"observer", "observer_kwargs", "scale_dtype", "zp_dtype", "group_size"}


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
        is_pack_quantized: Whether the tensors are those of compressed-tensors, not of MLX.
        ignore: Modules that compressed-tensors left as they were, by the checkpoint's own paths.
    """

    group_size: int
    bits: int
    mode: str = "affine"
    overrides: Mapping[str, QuantizationSettings | None] = field(default_factory=dict)
    is_pack_quantized: bool = False
    ignore: tuple[str, ...] = ()

    @property
    def default(self) -> QuantizationSettings:
        """Settings of a module without an override."""
        return QuantizationSettings(self.group_size, self.bits, self.mode)


def read_quantization(top: Section) -> QuantizationConfig | None:
    """Return the settings that MLX converters write, under either of two keys, or another's."""
    section = top.section("quantization") or top.section("quantization_config")
    if section is None:
        return None
    if (method := section.get("quant_method")) == "compressed-tensors":
        return _read_compressed_tensors(section)
    if method is not None:
        raise section.error("quant_method", method, _OTHER_KINDS)
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


def _read_compressed_tensors(section: Section) -> QuantizationConfig:
    """Return the settings of a checkpoint that compressed-tensors has packed.

    Read are symmetric groups of 4-bit integers, which MLX's affine mode holds without loss.
    Which modules they are is seen in the files.

    Source: compressed_tensors.quantization, QuantizationConfig and QuantizationArgs.
    """
    for key, only in (("format", "pack-quantized"), ("quantization_status", "compressed")):
        if section.get(key) != only:
            raise section.error(key, section.get(key), f'only "{only}" is read; {_OTHER_KINDS}')
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if value := section.get(key):
            raise section.error(key, value, f"only null and {{}} are read; {_OTHER_KINDS}")
    groups = section.section("config_groups")
    if groups is None or not groups.values:
        raise section.error("config_groups", section.get("config_groups"), _OTHER_KINDS)
    sizes = {name: _read_packed_group(groups, name) for name in groups.values}
    if len(set(sizes.values())) > 1:
        raise section.error(
            "config_groups", sizes, f"only groups of one size are read; {_OTHER_KINDS}"
        )
    ignore = section.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(path, str) for path in ignore):
        raise section.error("ignore", ignore, "it must be a list of module paths")
    return QuantizationConfig(
        next(iter(sizes.values())), 4, is_pack_quantized=True, ignore=tuple(ignore)
    )


def _read_packed_group(groups: Section, name: str) -> int:
    """Return the group size of one of config_groups, in which nothing else is of another kind."""
    group = groups.section(name)
    if group is None:
        raise groups.error(name, None, _OTHER_KINDS)
    weights = group.section("weights")
    if weights is None:
        raise group.error("weights", None, _OTHER_KINDS)
    for key in ("input_activations", "output_activations"):
        if value := group.get(key):
            raise group.error(key, value, f"only null is read; {_OTHER_KINDS}")
    if group.get("format") not in (None, "pack-quantized"):
        raise group.error(
            "format", group.get("format"), f'only "pack-quantized" is read; {_OTHER_KINDS}'
        )
    for key, (only, default) in _PACKED_WEIGHTS.items():
        value = weights.values.get(key, default)
        if value != only or type(value) is not type(only):
            raise weights.error(key, value, f"only {json.dumps(only)} is read; {_OTHER_KINDS}")
    for key, value in weights.values.items():
        if key not in _PACKED_WEIGHTS and key not in _UNREAD_WEIGHTS_KEYS and value:
            raise weights.error(key, value, f"this key is not known; {_OTHER_KINDS}")
    group_size = weights.get("group_size")
    _, allowed = QUANTIZATION_MODES["affine"]
    if type(group_size) is not int or group_size not in allowed:
        sizes = ", ".join(map(str, sorted(allowed)))
        raise weights.error("group_size", group_size, f"read are {sizes}; {_OTHER_KINDS}")
    return group_size
