"""Language models as a resource."""

from wirestate.resources.llm.adapter import LLMResourceAdapter
from wirestate.resources.llm.calls import LLM, Completion

__all__ = ["LLM", "Completion", "LLMResourceAdapter"]
