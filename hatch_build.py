"""The long description of the package: README.md as it reads where the repository is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)[^)]*\)")
NOTE = "The pages that are named here lie in the source distribution.\n"


class Readme(MetadataHookInterface):
    """Put it into the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:  # Any: whatever pyproject.toml holds
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": RELATIVE_LINK.sub(r"\1", text) + "\n" + NOTE}
