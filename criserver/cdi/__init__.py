"""Container Device Interface: what device vendors want changed in a container's spec.

See the CNCF's container-device-interface, SPEC.md; versions 0.3.0 to 1.1.0.
"""

from __future__ import annotations

from criserver.cdi.edits import apply
from criserver.cdi.specs import resolve, wanted

__all__ = ["apply", "resolve", "wanted"]
