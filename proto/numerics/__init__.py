"""Wire formats of numbers, for both ends: bfloat16, float16, block-scaled integers, and non-finite values."""
