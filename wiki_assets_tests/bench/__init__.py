"""What the platform costs beside the plain way of doing the same: `python -m wiki_assets_tests.bench --help`."""
