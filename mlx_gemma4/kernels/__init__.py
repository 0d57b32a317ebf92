"""Operations with a Metal kernel or a plain-MLX definition: arrays in, arrays out, no Gemma."""
