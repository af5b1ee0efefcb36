"""`python -m rapidun ...` is `rapidun ...`."""

from rapidun.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
