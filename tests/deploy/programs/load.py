"""Scores digits from several threads for a while; exit code 1 if a call failed.

python load.py TARGET SECONDS CALLERS
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np

import glowserve


def main(target: str, seconds: float, callers: int) -> int:
    """Prints how many calls were answered, and the first failures."""
    images = np.random.default_rng(0).integers(0, 17, (16, 8, 8, 1), dtype=np.uint8) * 15
    answered, failures, lock = [0], list[str](), threading.Lock()
    end = time.monotonic() + seconds

    def call(client: glowserve.Client) -> None:
        done = 0
        while time.monotonic() < end:
            try:
                client.score(images[done % 16 : done % 16 + 1])
                done += 1
            except glowserve.RequestError as error:
                failures.append(str(error))
        with lock:
            answered[0] += done

    with glowserve.Client(target) as client:
        threads = [threading.Thread(target=call, args=(client,)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"{answered[0]} calls were answered, {len(failures)} failed", *failures[:3], sep="\n")
    return 1 if failures or not answered[0] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
