"""Installs the systems that benchmarks/end_to_end.py compares with, each in a virtual environment of its own.

    python benchmarks/peers/install.py                        # all: 8 GB below .peers with CPU builds of torch
    python benchmarks/peers/install.py cleanrl rllib          # some of them
    python benchmarks/peers/install.py cleanrl --source cleanrl=/path/or/url/of/a/clone

Every package is pinned in benchmarks/peers/NAME.txt. CleanRL and EPyMARL are no packages: their repositories are
cloned at a pinned commit. On Linux the public torch comes with CUDA (GBs more each): where you have an index of CPU
builds, say so with --pip-args "--extra-index-url URL".
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import venv
from pathlib import Path

_HERE = Path(__file__).resolve().parent
PEERS = _HERE.parents[1] / ".peers"
NAMES = sorted(path.stem for path in _HERE.glob("*.txt"))
SOURCES = {
    "cleanrl": ("https://github.com/vwxyzjn/cleanrl", "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"),
    "epymarl": ("https://github.com/uoe-agents/epymarl", "cbc38c09588064eab978501d0f12c2cf58fa7fc2"),
}


def install(name: str, source: str | None, pip_args: list[str]) -> None:
    """Make one peer's environment, and clone its source where it needs one.

    Raises:
        subprocess.CalledProcessError: pip or git failed.
    """
    home = PEERS / name
    stamp = home / "installed"
    stamp.unlink(missing_ok=True)
    if not (home / "bin" / "python").exists():
        venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *pip_args, "-r", str(_HERE / f"{name}.txt")], check=True)
    if name in SOURCES:
        url, commit = SOURCES[name]
        clone(source or url, commit, PEERS / "src" / name)
    stamp.touch()


def clone(url: str, commit: str, directory: Path) -> None:
    """Have the commit checked out in `directory`."""
    if not directory.exists():
        subprocess.run(["git", "clone", "--quiet", url, str(directory)], check=True)
    subprocess.run(["git", "-C", str(directory), "checkout", "--quiet", "--detach", commit], check=True)


def main() -> int:
    """Install what is asked for; 1 where one of them could not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--source", nargs="*", default=[], metavar="NAME=URL", help="where to clone one from")
    parser.add_argument("--pip-args", default="", help="further arguments of pip install, as one text")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(NAMES)}")
    sources = dict(entry.split("=", 1) for entry in options.source)
    failed = []
    for name in options.names or NAMES:
        print(f"{name}: installs into {PEERS / name}", flush=True)
        try:
            install(name, sources.get(name), shlex.split(options.pip_args))
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: not installed: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
