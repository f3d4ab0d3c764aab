import sys

from gemma4_mtp import main

sys.exit(main())
