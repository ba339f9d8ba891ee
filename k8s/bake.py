"""Fill a cache folder with what every machine would else derive at its first task; run while the image is built.

python k8s/bake.py /opt/wiki_assets/cache
"""

import sys
from pathlib import Path

from wiki_assets.resources.engines import reference
from wiki_assets.resources.models import DEFAULT_MODEL, find_model, load_encoding

cache = Path(sys.argv[1])
load_encoding("cl100k_base", cache)
reference(find_model(DEFAULT_MODEL), cache, threads=2)
for path in [cache, *cache.rglob("*")]:
    path.chmod(0o755 if path.is_dir() else 0o644)  # whoever the pod runs as may read it
