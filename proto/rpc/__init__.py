"""gRPC over `downpour.proto.http2`: the server, the client's channel, calls, retries and health."""
