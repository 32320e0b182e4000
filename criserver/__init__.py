"""The CRI daemon: gRPC server, state, recovery and the client commands."""
