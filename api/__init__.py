"""The CRI as messages and errors: what every other package speaks."""
