"""`python -m bench`: see `bench/compare.py`."""

from bench.compare import main

raise SystemExit(main())
