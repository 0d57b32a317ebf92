"""The decoder, its two front ends, and the masks as intervals."""
