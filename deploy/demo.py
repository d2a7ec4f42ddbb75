"""Trains a model of handwritten digits and exports it into a mounted repository: the profile `demo` of compose.

python demo.py REPOSITORY
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main(repository: Path) -> int:
    """Writes REPOSITORY/digits/1, unless the model has a version already."""
    become_owner(repository)
    if any((repository / "digits").glob("*/manifest.json")):
        print(f"demo: {repository}/digits has a version already; remove that folder to train again")
        return 0
    run = Path("/tmp/run")
    for command in (
        ["train", "--data", "digits", "--steps", "600", "--out", str(run)],
        ["export", str(run / "model.ckpt"), str(repository / "digits")],
    ):
        if code := subprocess.run([sys.executable, "-m", "glowserve", *command], check=False).returncode:
            return code
    print(
        f"demo: the service finds {repository}/digits/1 within ten seconds; docs/deployment.md says what to ask it"
    )
    return 0


def become_owner(folder: Path) -> None:
    """Becomes the user and group of a folder, so that what is written there is theirs, not root's."""
    owner = folder.stat()
    if os.getuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
