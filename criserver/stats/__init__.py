"""What containers and pods use: read on a thread of its own, and put into the CRI's messages."""
