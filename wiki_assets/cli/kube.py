"""Look at the Kubernetes cluster before anything is run on it."""

import json
import sys

import click

from wiki_assets.cli.common import FAILED, with_settings
from wiki_assets.settings import Settings


@click.command()
@click.option("--kube", is_flag=True, required=True, help="Look at the Kubernetes cluster that kubectl would use.")
@click.option("--namespace", default="wiki-assets", show_default=True, help="Where we are installed.")
@click.option("--context", help="Of the kubeconfig file; its current one, if left out.")
@click.option("--gpus-on-demand", is_flag=True, help="Nodes with GPUs appear when asked for: none need be there now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for pipes.")
@with_settings
def doctor(
    kube: bool, namespace: str, context: str | None, gpus_on_demand: bool, as_json: bool, settings: Settings
) -> None:
    """Say what a deployment lacks, and how to put it right: CRDs, Secrets, storage classes, GPUs, buckets.

    \b
    wiki-assets doctor --kube
    wiki-assets doctor --kube --context prod --gpus-on-demand

    Reads only. Exit code 1 if something is to be done.
    """
    from wiki_assets.resources.kube import Kube, examine

    findings = examine(Kube(context=context), namespace, gpus_on_demand=gpus_on_demand)
    for finding in findings:
        if as_json:
            row = {"about": finding.about, "good": finding.good, "found": finding.found, "remedy": finding.remedy}
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            mark = click.style("ok ", fg="green") if finding.good else click.style("BAD", fg="red", bold=True)
            click.echo(f"{mark}  {finding.about}: {finding.found}")
            if not finding.good:
                click.echo(f"     → {finding.remedy}")
    bad = sum(not finding.good for finding in findings)
    if bad:
        click.echo(f"wiki-assets: {bad} of {len(findings)} things are to be put right", err=True)
        sys.exit(FAILED)
