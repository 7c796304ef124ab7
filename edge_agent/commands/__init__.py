"""Commands from the cloud: kept with the page they came in, run once each, answered by facts."""

from edge_agent.commands.handlers import Handler, handlers_of
from edge_agent.commands.runner import CommandRunner

__all__ = ["CommandRunner", "Handler", "handlers_of"]
