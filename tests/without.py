"""The deletion check of docs/adding-a-system.md: `python tests/without.py doshii`.

Copies what git knows of the tree, or would add, without the files named after the system and without its line in the
list of systems; then runs the checks and every other test there."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path("workers/systems/__init__.py")


def of_system(path: str, system: str) -> bool:
    """Whether a file is one of the system's own: by its name, or that of its folder."""
    return any(re.fullmatch(rf"(test_)?{system}(_\w+)?", Path(part).stem) for part in Path(path).parts)


def copy_without(system: str, folder: Path) -> list[str]:
    """Copy the tree to `folder`; the files that were left out. Raises `ValueError` for a system that is not listed."""
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    left_out = []
    for path in known.stdout.decode().split("\0"):
        if not path or not (ROOT / path).exists():
            continue
        if of_system(path, system):
            left_out.append(path)
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path)
    text = (folder / LIST).read_text()
    without = text.replace(f'    "{system}",\n', "")
    if without == text:
        raise ValueError(f"{LIST} does not list {system!r}")
    (folder / LIST).write_text(without)
    return left_out


def mentions(system: str, folder: Path) -> list[str]:
    """Files of the product that still name the system."""
    product = (path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] not in ("tests", "bench"))
    return [str(path.relative_to(folder)) for path in product if system in path.read_text()]


def main(system: str, *pytest_arguments: str) -> int:
    """Print what was left out and what the runs say; 1 when one of them failed."""
    with tempfile.TemporaryDirectory(prefix="orderfleet-without-") as name:
        folder = Path(name)
        left_out = copy_without(system, folder)
        print(f"without {system}: {len(left_out)} files left out: {', '.join(left_out)}")
        print(f"still named in: {', '.join(mentions(system, folder)) or 'no file of the product'}")
        tools = Path(sys.executable).parent
        for command in (
            [tools / "ruff", "check", "--no-cache"],
            [tools / "mypy"],
            [tools / "lint-imports"],
            [sys.executable, "-m", "pytest", "-q", "-n", "2", *pytest_arguments],
        ):
            if subprocess.run([str(word) for word in command], cwd=folder, check=False).returncode:
                print(f"failed: {' '.join(str(word) for word in command)}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
