"""A Hugging Face Hub on this machine, for tests with the unpatched clients: docs/internals/testing.md."""

from tests.hub.faults import Fault, Request
from tests.hub.server import LocalHub

__all__ = ["Fault", "LocalHub", "Request"]
