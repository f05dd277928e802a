# The images of Trialkeeper, one a target:
#
#   operator   what the chart runs
#   trainer    Python, the SDK and examples/, for `helm test` and to try things out
#   store      MinIO, which is not built here: put its binary into the context first (below)
#
#   docker build --target operator -t trialkeeper-operator:0.1.0 .
#
# Any Debian with Python 3.11 or newer, its venv and ca-certificates will do as BASE; pin yours by its digest. What is
# installed is locked by hash in operator/locks, wheels only, so no compiler is needed. All run as 65532 and with a
# read-only root, if /tmp can be written.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# A mirror of the package index, if you have one.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_ONLY_BINARY=:all:
COPY operator/locks/build.txt /locks/
RUN python3 -m venv /build \
    && /build/bin/pip install --quiet --require-hashes -r /locks/build.txt \
    && python3 -m venv --without-pip /opt/trialkeeper

# What is locked comes before what is ours, so that a change of ours installs nothing anew.
FROM build AS operator-libraries
COPY operator/locks/image.txt /locks/
RUN /build/bin/pip --python /opt/trialkeeper/bin/python install --quiet --require-hashes -r /locks/image.txt \
    && find /opt/trialkeeper -name tests -type d -prune -exec rm -rf {} +

FROM build AS trainer-libraries
COPY operator/locks/trainer.txt /locks/
RUN /build/bin/pip --python /opt/trialkeeper/bin/python install --quiet --require-hashes -r /locks/trainer.txt \
    && find /opt/trialkeeper -name tests -type d -prune -exec rm -rf {} +

FROM operator-libraries AS operator-build
COPY trainer-sdk/ /source/trainer-sdk/
COPY operator/ /source/operator/
RUN PIP_ONLY_BINARY= /build/bin/pip wheel --quiet --no-deps --no-build-isolation \
        -w /wheels /source/trainer-sdk /source/operator \
    && /build/bin/pip --python /opt/trialkeeper/bin/python install --quiet --no-deps /wheels/*.whl

FROM trainer-libraries AS trainer-build
COPY trainer-sdk/ /source/trainer-sdk/
RUN PIP_ONLY_BINARY= /build/bin/pip wheel --quiet --no-deps --no-build-isolation -w /wheels /source/trainer-sdk \
    && /build/bin/pip --python /opt/trialkeeper/bin/python install --quiet --no-deps /wheels/*.whl

FROM ${BASE} AS user
RUN echo 'trialkeeper:x:65532:65532::/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'trialkeeper:x:65532:' >>/etc/group
ENV PATH=/opt/trialkeeper/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532

FROM user AS operator
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="trialkeeper-operator" \
      org.opencontainers.image.description="The operator of Trialkeeper: checkpointed trials on Kubernetes" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
COPY --from=operator-build /opt/trialkeeper /opt/trialkeeper
WORKDIR /tmp
EXPOSE 8080 8443
ENTRYPOINT ["python", "-m", "trialkeeper_operator.serve"]
CMD ["--config", "/etc/trialkeeper/config.yaml"]

FROM user AS trainer
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="trialkeeper-trainer" \
      org.opencontainers.image.description="Python, Trialkeeper's SDK with S3, scikit-learn and the examples" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
COPY --from=trainer-build /opt/trialkeeper /opt/trialkeeper
COPY examples/ /examples/
WORKDIR /examples
CMD ["python", "digits.py"]

# MinIO is free software under the AGPL-3.0, not under Trialkeeper's licence. Who gives this image to others must offer
# them the source of that MinIO. Its makers publish no binaries any more; build it yourself, into the context:
#
#   CGO_ENABLED=0 GOBIN="$PWD" go install github.com/minio/minio@<version>
#   docker build --target store --build-arg MINIO_VERSION=<version> -t trialkeeper-store:0.1.0 .
FROM scratch AS store
ARG MINIO=minio
ARG MINIO_VERSION=unknown
LABEL org.opencontainers.image.title="trialkeeper-store" \
      org.opencontainers.image.description="MinIO, as the embedded store of Trialkeeper's chart" \
      org.opencontainers.image.version="${MINIO_VERSION}" org.opencontainers.image.licenses="AGPL-3.0-or-later" \
      org.opencontainers.image.source="https://github.com/minio/minio"
COPY ${MINIO} /usr/bin/minio
ENV HOME=/tmp MINIO_BROWSER=off
USER 65532:65532
EXPOSE 9000
ENTRYPOINT ["/usr/bin/minio"]
CMD ["server", "/data", "--address=:9000"]
