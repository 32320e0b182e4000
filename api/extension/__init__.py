"""criserver's own gRPC service, beside the CRI on the same socket, and its generated stubs."""
