"""The names that `import wirestate` offers, imported together at the first use of one of them."""

from wirestate.errors import BuildError, Fault, Reject, ResourceError, WirestateError
from wirestate.fsm import SimpleFSM
from wirestate.injection import lifetimes
from wirestate.injection.container import ResourceContainer, container_from_settings, manager_of
from wirestate.machine.config import load_machine
from wirestate.machine.context import FunctionContext
from wirestate.machine.definition import Machine
from wirestate.machine.outcomes import ExecutionResult
from wirestate.machine.results import RunResult
from wirestate.observing import Listener
from wirestate.resources.base import (
    BaseResourceProvider,
    IResourceProvider,
    ResourceConfig,
    ResourceHealth,
    ResourceMetrics,
    ResourceStatus,
)
from wirestate.resources.database import DatabaseResourceAdapter
from wirestate.resources.filesystem import FileSystemResourceAdapter
from wirestate.resources.http import HTTPResourceAdapter
from wirestate.resources.llm import LLMResourceAdapter
from wirestate.resources.manager import ResourceManager
from wirestate.resources.monitor import HealthMonitor
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.running.stream import StreamSummary
from wirestate.settings import WirestateSettings
from wirestate.waiting import run_in_thread

__all__ = [
    "BaseResourceProvider",
    "BuildError",
    "DatabaseResourceAdapter",
    "ExecutionResult",
    "Fault",
    "FileSystemResourceAdapter",
    "FunctionContext",
    "HTTPResourceAdapter",
    "HealthMonitor",
    "IResourceProvider",
    "LLMResourceAdapter",
    "Listener",
    "Machine",
    "PoolConfig",
    "Reject",
    "ResourceConfig",
    "ResourceContainer",
    "ResourceError",
    "ResourceHealth",
    "ResourceManager",
    "ResourceMetrics",
    "ResourcePool",
    "ResourceStatus",
    "RunResult",
    "SimpleFSM",
    "StreamSummary",
    "WirestateError",
    "WirestateSettings",
    "container_from_settings",
    "lifetimes",
    "load_machine",
    "manager_of",
    "run_in_thread",
]
