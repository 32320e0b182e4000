"""The auditor: what is on the machine and belongs to no pod, container or image of this daemon.

stray.py     what is found, and the interface of the checks
auditor.py   the periodic sweep, the two-sweep rule, `criserver audit`
objects.py   bundles, sandboxes, mounts, cgroups, shims: what has a pod's or container's id
parts.py     what the image store and the network find of their own
"""
