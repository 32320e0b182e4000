"""What the daemon tells of itself beyond the CRI: explanations of objects, and audits."""

from __future__ import annotations

from typing import Any

from criserver.audit import objects, parts
from criserver.audit.auditor import Auditor
from criserver.runtime import Runtime


class Diagnosis:
    """Answers Explain and Audit."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.auditor = make_auditor(runtime)

    async def explain(self, reference: str) -> dict[str, Any]:
        """See Explainer.explain."""
        return await self._runtime.explainer.explain(reference)

    async def audit(self, *, fix: bool) -> dict[str, Any]:
        """See Auditor.audit."""
        return await self.auditor.audit(fix=fix)


def make_auditor(runtime: Runtime) -> Auditor:
    """Return the auditor with all checks, in the order in which strays are to be removed."""
    return Auditor(
        [
            objects.Mounts(runtime),
            objects.Bundles(runtime),
            objects.Sandboxes(runtime),
            objects.Cgroups(runtime),
            objects.Shims(runtime),
            parts.Network(runtime),
            parts.Images(runtime),
            objects.Losses(runtime),
        ],
        lambda key: runtime.operations.is_busy(key) or bool(runtime.history.under_way(key)),
        runtime.leaks.report,
    )
