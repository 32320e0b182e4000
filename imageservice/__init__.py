"""The image service: registries, content, layers, snapshots, and CRI's image methods."""
