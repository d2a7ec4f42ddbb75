"""`python -m glowserve`."""

from glowserve.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
