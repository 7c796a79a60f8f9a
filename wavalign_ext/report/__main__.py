import sys

from wavalign_ext.report import main

sys.exit(main())
