"""``python -m avsseg`` is the same program as ``avsseg``."""

from avsseg.cli import main

if __name__ == "__main__":
    main()
