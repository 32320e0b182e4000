"""The methods of criserver.extension.v1 that explain: what `criserver explain` and `audit` ask."""

from __future__ import annotations

import json
from typing import Any, Protocol

import grpc.aio

from api.extension import extension_pb2 as pb
from criserver.extension_images import Images, ImageServicer


class Diagnoses(Protocol):
    """What is needed of criserver.diagnosis."""

    async def explain(self, reference: str) -> dict[str, Any]:
        """Tell all about an object. Raises api.errors."""

    async def audit(self, *, fix: bool) -> dict[str, Any]:
        """Tell what belongs to nobody, and remove it if asked. Raises api.errors."""


class DiagnosisServicer(ImageServicer):
    """Explain and Audit, and what is inherited."""

    def __init__(self, images: Images, diagnoses: Diagnoses) -> None:
        super().__init__(images)
        self._diagnoses = diagnoses

    async def Explain(  # noqa: N802 - the name is the RPC's
        self,
        request: pb.ExplainRequest,
        context: grpc.aio.ServicerContext[pb.ExplainRequest, pb.ExplainResponse],
    ) -> pb.ExplainResponse:
        """Tell what was done to an object, and what it waits for."""
        found = await self._diagnoses.explain(request.reference)
        return pb.ExplainResponse(json=json.dumps(found))

    async def Audit(  # noqa: N802
        self,
        request: pb.AuditRequest,
        context: grpc.aio.ServicerContext[pb.AuditRequest, pb.AuditResponse],
    ) -> pb.AuditResponse:
        """Tell what belongs to nobody."""
        return pb.AuditResponse(json=json.dumps(await self._diagnoses.audit(fix=request.fix)))
