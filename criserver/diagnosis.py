"""What the daemon tells of itself beyond the CRI: explanations of objects, and audits."""

from __future__ import annotations

from typing import Any

from criserver.runtime import Runtime


class Diagnosis:
    """Answers Explain and Audit."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def explain(self, reference: str) -> dict[str, Any]:
        """See Explainer.explain."""
        return await self._runtime.explainer.explain(reference)

    async def audit(self, *, fix: bool) -> dict[str, Any]:
        """See audit.Auditor."""
        return {}
