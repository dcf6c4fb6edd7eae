# Build: docker build --build-arg VERSION=$(git describe --tags --always) -t satchel .
# Key:   docker run --rm -v satchel:/data satchel secrets generate --out /data/satchel.key
# Run:   docker run -p 8090:8090 -v satchel:/data satchel

FROM golang:1.27 AS build
ENV CGO_ENABLED=0 GOTOOLCHAIN=auto
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o satchel .

FROM alpine:3.22
RUN apk add --no-cache ca-certificates tzdata \
 && mkdir -p /data/pb_data \
 && chown -R 65532:65532 /data
COPY --from=build /src/satchel /usr/local/bin/satchel

# All that must survive is below /data: pb_data, and beside it the master key, pb_hooks, pb_migrations and pb_public.
WORKDIR /data
VOLUME /data
USER 65532:65532
ENV SATCHEL_MODE=production SATCHEL_DATA_DIR=/data/pb_data SATCHEL_HTTP=0.0.0.0:8090
EXPOSE 8090

# After SIGTERM running requests get 20 s: give the container longer (docker stop -t 30).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
  CMD wget -q -O /dev/null http://127.0.0.1:8090/api/v1/health/ready || exit 1

ENTRYPOINT ["/usr/local/bin/satchel"]
CMD ["serve"]
