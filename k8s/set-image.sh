#!/usr/bin/env bash
# Name the image everywhere at once: k8s/images/kustomization.yaml and helm-values/*.yaml.
#   k8s/set-image.sh REPOSITORY TAG CUDA_TAG
#   k8s/set-image.sh ghcr.io/me/wiki-assets 0.1.0@sha256:… 0.1.0-cuda@sha256:…
set -euo pipefail
if [ $# -ne 3 ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
for argument in "$@"; do
  case $argument in *[!A-Za-z0-9._:@/-]*) echo "set-image.sh: $argument: not a part of an image's name" >&2; exit 2 ;; esac
done
cd "$(dirname "$0")/.."
images=k8s/images/kustomization.yaml
old=$(sed -n 's/.*name: wiki-assets, newName: \([^,]*\),.*/\1/p' $images)
old_tag=$(sed -n 's/.*name: wiki-assets, .*newTag: "\{0,1\}\([^"}]*\)"\{0,1\}}.*/\1/p' $images)
if [ -z "$old" ] || [ -z "$old_tag" ]; then
  echo "set-image.sh: $images: found no image wiki-assets; put its line back: git checkout $images" >&2
  exit 1
fi
sed -i.bak \
  -e "s|{name: wiki-assets, .*}|{name: wiki-assets, newName: $1, newTag: \"$2\"}|" \
  -e "s|{name: wiki-assets-cuda, .*}|{name: wiki-assets-cuda, newName: $1, newTag: \"$3\"}|" $images
sed -i.bak \
  -e "s|repository: $old, tag: \"$old_tag\"|repository: $1, tag: \"$2\"|" \
  -e "s|image: $old:$old_tag\$|image: $1:$2|" helm-values/*.yaml
rm -f $images.bak helm-values/*.yaml.bak
