"""What the package and each of its extras put on the disk: the sum of the files of all distributions that they need.

Read from the metadata of the environment that runs this, so run `make setup` first; what is not installed is named.
Compiled bytecode is left out: pip may or may not write it.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "clip-itm"


def needed(requirement: Requirement, found: set[tuple[str, str]], missing: set[str]) -> None:
    """Add (name, extra) of `requirement` and of what it needs to `found`, and what is not there to `missing`."""
    name = canonicalize_name(requirement.name)
    for extra in ("", *sorted(requirement.extras)):
        if (name, extra) in found:
            continue
        try:
            below = requires(name) or []
        except PackageNotFoundError:
            missing.add(name)
            return
        found.add((name, extra))
        for line in below:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                needed(one, found, missing)


def size(name: str) -> int:
    """Bytes of the files of a distribution."""
    paths = (Path(str(file.locate())) for file in distribution(name).files or [] if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())


def names(extra: str) -> tuple[set[str], set[str]]:
    """Names of the distributions that the package with `extra` needs, and of those that are missing."""
    found: set[tuple[str, str]] = set()
    missing: set[str] = set()
    needed(Requirement(f"{PACKAGE}[{extra}]" if extra else PACKAGE), found, missing)
    return {name for name, _ in found}, missing


def main() -> None:
    base, _ = names("")
    torch = {name for name in base if name.startswith(("torch", "nvidia", "triton", "cuda"))}
    rows = [("the package", base - torch, set()), ("torch and its libraries", torch, set())]
    for extra in distribution(PACKAGE).metadata.get_all("Provides-Extra") or []:
        found, missing = names(extra)
        rows.append((extra, found - base, missing))
    print(f"Python {sys.version.split()[0]}, torch {distribution('torch').version}\n")
    print("| | packages | MB |\n|:--|--:|--:|")
    for label, found, missing in rows:
        note = f", without {', '.join(sorted(missing))}" if missing else ""
        print(f"| {label}{note} | {len(found)} | {sum(map(size, found)) / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
