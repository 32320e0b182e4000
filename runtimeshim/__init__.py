"""Everything below a container: spawner, shims, the OCI executor and the kernel."""
