"""The steps of a target of infra/images/Dockerfile, executed in a clean Debian without a container engine. Needs root.

    python -m tests.infra.build_root --root DIR --target cpu [--copy /etc/pip.conf ...]

debootstrap makes a minimal bookworm with Debian's Python 3.11 in the place of python:3.11-slim-bookworm; every RUN,
COPY, ENV, WORKDIR and USER of the target and of the stages that it comes from is then done there, stages in one root;
at the end the target's CMD. --copy brings files of this machine that the network here needs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "images" / "Dockerfile"
DEBIAN = "python3,python3-venv,ca-certificates"
BOUND = ("/proc", "/dev", "/dev/shm", "/sys")


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage -> (what it comes from, its instructions)."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = (base, [])
        else:
            found[name][1].append((word, rest))
    return found


def chain(target: str) -> list[tuple[str, str]]:
    """All instructions that make a target, those of the stages that it copies from first."""
    known, done = stages(), []

    def add(name: str) -> None:
        if name not in known or name in done:
            return
        base, instructions = known[name]
        for word, rest in instructions:
            if word == "COPY" and (source := re.match(r"--from=(\S+)", rest)):
                add(source[1])
        add(base)
        done.append(name)

    add(target)
    return [instruction for name in done for instruction in known[name][1]]


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """The kernel's file systems inside the root while the block runs."""
    for place in BOUND:
        subprocess.run(["mount", "--bind", place, f"{root}{place}"], check=True)
    try:
        yield
    finally:
        for place in reversed(BOUND):
            subprocess.run(["umount", "--lazy", f"{root}{place}"], check=True)


def copy(root: Path, workdir: str, rest: str) -> None:
    """COPY from the context: what git knows of what the Dockerfile's ignore file lets through."""
    *names, target = rest.split()
    ignore = DOCKERFILE.with_name(DOCKERFILE.name + ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    chosen = allowed if names == ["."] else names
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *chosen],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    folder = Path(f"{root}{target if target.startswith('/') else f'{workdir}/{target}'}")
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def build(root: Path, target: str) -> None:
    """Do all instructions. Raises CalledProcessError when one fails."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
    workdir, user = "/", ""
    for word, rest in chain(target):
        print(f"--- {word} {rest}", flush=True)
        if word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                environment[name] = value.replace("$PATH", environment["PATH"])
        elif word == "WORKDIR":
            workdir = rest
            Path(f"{root}{workdir}").mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            user = rest
        elif word == "COPY" and "--from=" not in rest:
            copy(root, workdir, rest)
        elif word in ("RUN", "CMD"):
            command = ["/bin/sh", "-c", rest] if word == "RUN" else json.loads(rest)
            inside = [
                "chroot",
                *([f"--userspec={user}:{user}"] if user else []),
                str(root),
                "/usr/bin/env",
                "-C",
                workdir,
            ]
            subprocess.run([*inside, *command], check=True, env=environment | ({"HOME": workdir} if user else {}))


def main() -> int:
    """Make the root where it is not there, build in it; 1 when an instruction failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--target", choices=sorted(stages()), default="cpu")
    parser.add_argument("--copy", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    root: Path = options.root.resolve()
    if not (root / "usr" / "bin" / "python3").exists():
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={DEBIAN}", "bookworm", root], check=True)
        os.symlink("python3", root / "usr" / "bin" / "python")
    for file in options.copy:
        (root / str(file).lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / str(file).lstrip("/"))
    with mounted(root):
        try:
            build(root, options.target)
        except subprocess.CalledProcessError as error:
            print(f"failed: {error.cmd[-1]}", file=sys.stderr)
            return 1
    print(f"every step of {options.target} was done in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
