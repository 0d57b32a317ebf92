"""Metal sources, one kernel a file; installed as `mlx_gemma4.kernels.metal`."""
