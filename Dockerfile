# syntax=docker/dockerfile:1
# letta-gateway in a distroless image: the binary, glibc, the system's CA certificates, no shell, no root.

FROM rust:1.95-bookworm AS build
WORKDIR /build

# on: built twice, the second time by a profile of the first under load, which takes a tenth off the time of a request;
# off: built once, and a change of the source does not build the dependencies again
ARG PGO=on
COPY Cargo.toml Cargo.lock ./
RUN if [ "$PGO" = on ]; then \
      apt-get update && apt-get install -y --no-install-recommends nginx-light openssl python3 wrk \
      && rustup component add llvm-tools; \
    else \
      mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
      && cargo build --release --locked --bin letta-gateway; \
    fi

COPY config config
COPY src src
COPY tests/bench tests/bench
# told by --version and by the metric letta_gateway_build_info, e.g. --build-arg COMMIT=$(git rev-parse --short HEAD)
ARG COMMIT=unknown
# the files' times are those of the checkout; cargo is to see that they are not the ones above
RUN find src -name '*.rs' -exec touch {} + \
 && export LETTA_GATEWAY_COMMIT=$COMMIT \
 && if [ "$PGO" = on ]; then \
      tests/bench/pgo target/release/letta-gateway; \
    else \
      cargo build --release --locked --bin letta-gateway; \
    fi \
 && strip --strip-debug target/release/letta-gateway

FROM gcr.io/distroless/cc-debian12:nonroot
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="letta-gateway" \
      org.opencontainers.image.description="Reverse-proxy API gateway for Letta replicas" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${COMMIT}"

COPY --from=build /build/target/release/letta-gateway /letta-gateway

# plain, TLS, admin
EXPOSE 8283 8443 9090

# asks the admin listener of the configuration below; there is no shell and no curl here
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
  CMD ["/letta-gateway", "healthcheck", "--config", "/etc/letta-gateway/gateway.yaml"]

# SIGTERM drains: streams may end within the configured `drain`
STOPSIGNAL SIGTERM
ENTRYPOINT ["/letta-gateway"]
CMD ["run", "--config", "/etc/letta-gateway/gateway.yaml"]
