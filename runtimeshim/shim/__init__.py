"""One container's supervisor: streams, log, exits, exec and attach, in a fork of the spawner."""
