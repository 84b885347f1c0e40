"""Packages made by a test: modules with metadata in a folder that can go on sys.path."""

from collections.abc import Mapping
from pathlib import Path


def install_package(
    folder: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, str]
) -> None:
    """Write a package with these modules (name: code) and entry points for `kasparro.sources`."""
    for module, code in modules.items():
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join(f"{point} = {value}" for point, value in entry_points.items())
    (metadata / "entry_points.txt").write_text(f"[kasparro.sources]\n{lines}\n")
