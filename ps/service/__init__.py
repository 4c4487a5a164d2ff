"""The shard's gRPC methods, and the server of its process."""
