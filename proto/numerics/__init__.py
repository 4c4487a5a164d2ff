"""Numbers on the wire: bfloat16 and float16, block-scaled integers, and what is not finite. Of both ends."""
