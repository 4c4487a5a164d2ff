"""Starts jobs: recipes, topology, one entry per role and local emulation."""

import os

# The libraries read these when they are loaded. gRPC's C++ logs repeat our error message; TensorFlow's only report the
# processor.
for _name, _value in (("GRPC_VERBOSITY", "NONE"), ("TF_CPP_MIN_LOG_LEVEL", "2")):
    os.environ.setdefault(_name, _value)
