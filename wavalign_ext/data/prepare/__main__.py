import sys

from wavalign_ext.data.prepare.command import main

if __name__ == "__main__":  # worker processes import this file
    sys.exit(main())
