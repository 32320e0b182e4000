"""New limits over old ones: what an update leaves out stays as it is."""

from __future__ import annotations

from api.cri import api_pb2 as cri


def merged(
    old: cri.LinuxContainerResources, new: cri.LinuxContainerResources
) -> cri.LinuxContainerResources:
    """Return `old` with what `new` sets: 0 and "" are unset, huge pages go by their size."""
    result = cri.LinuxContainerResources()
    result.CopyFrom(old)
    for field, value in new.ListFields():  # lists what is not 0, "" or empty
        if field.name == "hugepage_limits":
            limits = {each.page_size: each for each in [*old.hugepage_limits, *value]}
            del result.hugepage_limits[:]
            result.hugepage_limits.extend(limits.values())
        elif field.name == "unified":
            result.unified.update(value)
        else:
            setattr(result, field.name, value)
    swap_is_kept = new.memory_swap_limit_in_bytes or not old.memory_swap_limit_in_bytes
    if new.memory_limit_in_bytes and not swap_is_kept:
        # The old sum of memory and swap means nothing beside a new limit of memory: as in
        # containerd there is no swap beyond it.
        result.memory_swap_limit_in_bytes = new.memory_limit_in_bytes
    return result
