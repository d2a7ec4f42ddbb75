"""Marks of tests that look into the process of the front. `make test-frontends` skips them: there it is another one."""

from __future__ import annotations

import pytest

reads_call_lines = pytest.mark.one_frontend("a front-end writes the log lines of its calls")
patches_the_front = pytest.mark.one_frontend("a front-end does not have what a test patches")
reads_one_log = pytest.mark.one_frontend("each front-end reads changed files, and logs that")
has_whole_limits = pytest.mark.one_frontend("a front-end has its share of a limit, and counts rows")
