"""`python -m tests.hub`: a Hub to try things on by hand."""

from __future__ import annotations

import argparse
import threading

from tests.hub import LocalHub

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, default=8808)
hub = LocalHub(parser.parse_args().port)
hub.add_user("demo")
print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={hub.token('demo')}")
print("export HF_HUB_DISABLE_XET=1 HF_HOME=$(mktemp -d)", flush=True)
threading.Event().wait()
