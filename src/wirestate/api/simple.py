"""The machine's public face under the module path of the resource management guide."""

from wirestate.fsm import SimpleFSM

__all__ = ["SimpleFSM"]
