import sys

from gemma4.__main__ import main

sys.exit(main())
