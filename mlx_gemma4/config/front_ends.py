"""VisionConfig and AudioConfig: pictures and sounds into soft tokens."""

from dataclasses import dataclass

from mlx_gemma4.config.section import Section

# Every 48x48 patch is one soft token, so is every 640-sample frame; processing is made for these.
PATCH_SIZE = 16
POOLING_KERNEL_SIZE = 3
FRAME_SIZE = 640


@dataclass(frozen=True)
class VisionConfig:
    """The front end for pictures: one 48x48-pixel patch is one soft token.

    Attributes:
        model_patch_size: Side of a patch in pixels, patch_size * pooling_kernel_size.
        mm_embed_dim: Dimensions between the patch matrix and the projection.
        mm_posemb_size: Rows of the position table: the longest side of a picture in patches.
        num_soft_tokens: Soft tokens of a picture unless the caller asks for another budget.
        output_proj_dims: Dimensions that go into the projection, equal to mm_embed_dim.
    """

    patch_size: int
    pooling_kernel_size: int
    model_patch_size: int
    mm_embed_dim: int
    mm_posemb_size: int
    num_soft_tokens: int
    output_proj_dims: int
    rms_norm_eps: float

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: three colours of every pixel."""
        return 3 * self.model_patch_size**2


@dataclass(frozen=True)
class AudioConfig:
    """The front end for sound: one frame of 640 samples (40 ms at 16 kHz) is one soft token."""

    audio_embed_dim: int
    audio_samples_per_token: int
    output_proj_dims: int
    rms_norm_eps: float


def read_vision(section: Section | None) -> VisionConfig | None:
    """Return the front end for pictures, or None where the checkpoint has none."""
    if section is None:
        return None
    sizes = {
        "patch_size": (PATCH_SIZE, PATCH_SIZE),
        "pooling_kernel_size": (POOLING_KERNEL_SIZE, POOLING_KERNEL_SIZE),
        "model_patch_size": (PATCH_SIZE * POOLING_KERNEL_SIZE,) * 2,
    }
    for key, (default, only) in sizes.items():
        if (value := section.integer(key, default)) != only:
            raise section.error(key, value, f"only {only} is supported")
    mm_embed_dim = section.integer("mm_embed_dim", 3840)
    output_proj_dims = section.integer("output_proj_dims", mm_embed_dim)
    if output_proj_dims != mm_embed_dim:
        raise section.error(
            "output_proj_dims", output_proj_dims, f"it must equal mm_embed_dim, {mm_embed_dim}"
        )
    return VisionConfig(
        patch_size=PATCH_SIZE,
        pooling_kernel_size=POOLING_KERNEL_SIZE,
        model_patch_size=PATCH_SIZE * POOLING_KERNEL_SIZE,
        mm_embed_dim=mm_embed_dim,
        mm_posemb_size=section.integer("mm_posemb_size", 1120),
        num_soft_tokens=section.integer("num_soft_tokens", 280),
        output_proj_dims=output_proj_dims,
        rms_norm_eps=section.positive("rms_norm_eps", 1e-6),
    )


def read_audio(section: Section | None) -> AudioConfig | None:
    """Return the front end for sound, or None where the checkpoint has none.

    Newer files write audio_embed_dim alone; the other keys are the same number.
    """
    if section is None:
        return None
    keys = ("audio_embed_dim", "audio_samples_per_token", "output_proj_dims", "hidden_size")
    for key in keys:
        if (value := section.integer(key, FRAME_SIZE)) != FRAME_SIZE:
            raise section.error(key, value, f"only {FRAME_SIZE} is supported")
    return AudioConfig(
        audio_embed_dim=FRAME_SIZE,
        audio_samples_per_token=FRAME_SIZE,
        output_proj_dims=FRAME_SIZE,
        rms_norm_eps=section.positive("rms_norm_eps", 1e-6),
    )
