"""Limits of the CRI's messages, apart from the server so that nobody imports grpc for them."""

# The most that the kubelet and crictl accept, and send.
MAX_MESSAGE = 16 * 1024 * 1024
