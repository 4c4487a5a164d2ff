"""HTTP/2 (RFC 9113) without gRPC: a state machine without I/O, and the I/O around it."""
