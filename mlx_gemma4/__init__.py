"""Gemma 4 12B Unified on Apple silicon: text, pictures, sound, and video in, text out."""

__version__ = "0.1.0"
