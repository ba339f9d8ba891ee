from wiki_assets.cli import main

main(prog_name="wiki-assets")
