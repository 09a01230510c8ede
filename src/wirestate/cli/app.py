"""The commands, their options, and how each of them ends."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from wirestate.cli import checking, carrying
