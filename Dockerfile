# syntax=docker/dockerfile:1.7
# One image for everything of ours: code location, run and step pods, webserver and daemon, Ray head and workers.
#   docker build -t REGISTRY/wiki-assets:0.1.0 .
#   docker build -t REGISTRY/wiki-assets:0.1.0-cuda --build-arg TORCH=cuda .
# Both have the same Python, the same Ray and the same constraints.txt; torch's CUDA wheels bring CUDA with them, so the
# base needs none, only the node its driver. The second is some 5 GB larger, for GPU workers alone.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# --- everything that pip installs, from the lock
FROM ${PYTHON_IMAGE} AS build
ARG TORCH=cpu
ARG EXTRAS=kubernetes
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY constraints.txt ./
# torch first, and alone: its CPU wheels are on an index of their own
RUN grep '^torch==' constraints.txt > torch.txt \
 && case "${TORCH}" in \
      cpu) pip install --index-url "${TORCH_CPU_INDEX}" --requirement torch.txt ;; \
      cuda) pip install --constraint constraints.txt --requirement torch.txt ;; \
      *) echo "TORCH=${TORCH}: expected cpu or cuda" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY wiki_assets/ wiki_assets/
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" \
 && pip check \
 && pip freeze --all > /opt/venv/requirements.lock

# --- what is derived once for a machine: token ranks checked, the model converted and its probe computed
FROM build AS bake
COPY k8s/bake.py /build/bake.py
RUN HF_HUB_OFFLINE=1 python /build/bake.py /opt/wiki_assets/cache

# --- what runs: no compiler, no pip cache, nobody's root
FROM ${PYTHON_IMAGE} AS image
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG TORCH=cpu
LABEL org.opencontainers.image.title="wiki_assets" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      io.wiki-assets.torch="${TORCH}"
RUN groupadd --gid 1000 wiki \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin wiki \
 && install -d -o 1000 -g 1000 /data /opt/dagster/dagster_home
COPY --from=build /opt/venv /opt/venv
COPY --from=bake /opt/wiki_assets/cache /opt/wiki_assets/cache
# The root file system is read-only in pods: what must be written goes to /tmp, /data or DAGSTER_HOME, all volumes.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    DAGSTER_HOME=/opt/dagster/dagster_home \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    WIKI_ASSETS_CACHE=/opt/wiki_assets/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /tmp
CMD ["wiki-assets", "--help"]
