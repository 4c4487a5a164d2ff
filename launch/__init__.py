"""How it runs: recipes, topology, one entry per role and local emulation."""

import os

# Read when the libraries are loaded. gRPC's C++ side says again what our one message says; TensorFlow's says what
# processor it found.
for _name, _value in (("GRPC_VERBOSITY", "NONE"), ("TF_CPP_MIN_LOG_LEVEL", "2")):
    os.environ.setdefault(_name, _value)
