"""Pod sandboxes: namespaces, files, cgroup and network of a pod."""
