"""Checkpoints converted: planned, quantized row by row, written whole or not at all."""
