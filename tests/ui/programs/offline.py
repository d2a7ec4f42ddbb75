"""In a network namespace of its own: a service, its pages and a browser, with nothing but the loopback interface.

    offline.py REPOSITORY CHROMIUM PICTURE

Prints, as JSON, what each page said, what was asked for elsewhere, and what failed.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.servers import start_server
from tests.ui.serving import start_pages

_SET_FLAGS, _UP = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP of <net/if.h>


def main(repository: str, chromium: str, picture: str) -> dict[str, Any]:
    """Uses each page once."""
    with socket.socket() as control:
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))
    interfaces = [name for _, name in socket.if_nameindex()]
    said: list[str] = []
    elsewhere: list[str] = []
    failed: list[str] = []
    with (
        start_server(Path(repository)) as server,
        start_pages("--server", server.target) as (_, url),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(base_url=url)
        page.on("request", lambda each: each.url.startswith((url, "data:")) or elsewhere.append(each.url))
        page.on("requestfailed", lambda each: failed.append(each.url))
        page.on("console", lambda each: failed.append(each.text))
        for path, fields in (
            ("/", ["#pictures"]),
            ("/sample", []),
            ("/interpolate", ["#first", "#last"]),
            ("/attributes", ["#original"]),
        ):
            page.goto(path)
            for box in page.query_selector_all("[type=checkbox]")[:1]:
                box.check()
            for field in fields:
                page.set_input_files(field, picture)
            page.click("button")
            page.wait_for_selector("#result h2")
            said.append(page.inner_text("#result h2"))
        browser.close()
    return {"interfaces": interfaces, "said": said, "elsewhere": elsewhere, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
