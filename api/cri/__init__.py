"""The CRI v1 messages, generated from api.proto."""
