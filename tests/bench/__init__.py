"""hack/bench: criserver and its peers measured side by side; nothing here is a test."""
