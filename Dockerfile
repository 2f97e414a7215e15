# SPDX-License-Identifier: Apache-2.0
# docker build --tag anatnet:0.1.0 .                                  for CPUs
# docker build --tag anatnet:0.1.0-cu130 --build-arg TORCH=cu130 .     for NVIDIA GPUs
#
# TORCH                which build of PyTorch: cpu, or a CUDA tag of its package index (cu126, cu130)
# TORCH_INDEX_URL      where that build is looked for besides the default index of pip; may be empty
# TEMPLATEFLOW_SPACES  templates to take along for --output-spaces, separated by spaces
# TEMPLATEFLOW_URL     another place than TemplateFlow's own archive
# IMAGE_TAG            the name of the image, which every dataset_description.json will give
# REVISION             the commit that is built

FROM python:3.11-slim-bookworm AS base
ENV LANG=C.UTF-8 \
    PATH=/opt/anatnet/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONNOUSERSITE=1
RUN python -m venv /opt/anatnet

FROM base AS wheel
COPY containers/requirements.txt /source/containers/
RUN pip install --constraint /source/containers/requirements.txt setuptools
COPY LICENSE README.md pyproject.toml setup.cfg /source/
COPY bids_app /source/bids_app
COPY models /source/models
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /source \
    && sha256sum /wheels/*.whl > /source/SHA256SUMS

FROM base AS templates
ARG TEMPLATEFLOW_SPACES=""
ARG TEMPLATEFLOW_URL=""
COPY containers/fetch_templates.py /source/containers/
RUN python /source/containers/fetch_templates.py /templateflow $TEMPLATEFLOW_SPACES

# What seldom changes comes first: a change of the code makes only the last layers anew.
FROM base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "tini=0.19.*" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin anatnet

ARG TORCH=cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/${TORCH}
COPY constraints.txt /opt/anatnet/share/
RUN pip install --constraint /opt/anatnet/share/constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch

COPY containers/requirements.txt /opt/anatnet/share/
RUN pip install --requirement /opt/anatnet/share/requirements.txt

COPY --from=templates /templateflow /opt/templateflow

# buildah takes a step from its cache even if what is mounted in it has changed, but not if a file
# that was copied before has: without this line, an image could hold code of yesterday.
COPY --from=wheel /source/SHA256SUMS /opt/anatnet/share/
ARG VERSION=0.1.0
RUN --mount=type=bind,from=wheel,source=/wheels,target=/tmp/wheels \
    --mount=type=bind,from=wheel,source=/source/models,target=/tmp/models \
    --mount=type=bind,source=containers,target=/tmp/containers \
    pip install --no-deps --no-index /tmp/wheels/*.whl \
    && pip check \
    && python /tmp/containers/check_image.py "$TORCH" "$VERSION" /tmp/models

ARG IMAGE_TAG=anatnet:${VERSION}
ARG REVISION=""
ENV ANATNET_DOCKER_TAG=${IMAGE_TAG} \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    TEMPLATEFLOW_HOME=/opt/templateflow
LABEL org.opencontainers.image.title="AnatNet" \
      org.opencontainers.image.description="Deep-learning segmentation of structural brain MRI as a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"

# tini passes SIGTERM (docker stop) and Ctrl-C on and takes in orphans; the app ends with 143 or 130.
STOPSIGNAL SIGTERM
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--", "anatnet"]
CMD ["--help"]
