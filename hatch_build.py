"""Adds the file `kasparro/commit` to wheels and source distributions: the commit that they are built from."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The hash of the last commit, and whether files have changed since then.
GIT = ("git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")


class CommitHook(BuildHookInterface[Any]):
    """A package that is built without git has no such file, unless its source distribution has one."""

    PLUGIN_NAME = "custom"
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        # An editable install changes without being built again.
        if version == "editable" or not Path(self.root, ".git").exists():
            return
        try:
            described = subprocess.run(GIT, cwd=self.root, capture_output=True, check=True)  # noqa: S603
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the package does not say its commit: {error}")
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name, "commit")
        file.write_bytes(described.stdout)
        build_data["force_include"][str(file)] = "kasparro/commit"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling after it has built."""
        del version, build_data, artifact_path
        if self._folder is not None:
            self._folder.cleanup()
