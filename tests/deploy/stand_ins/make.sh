#!/bin/sh
# Stand-ins for the images of nginx and Prometheus that compose.yaml names, from Debian's packages:
# for trying Compose where no registry is reached. Needs root, debootstrap and podman.
#
#   make.sh [OPTION ...]     options of "podman build"
set -eu
suite=${SUITE:-forky} # its nginx follows DNS, which needs 1.27.3
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=nginx,prometheus,wget "$suite" "$root"
tar -C "$root" -c . | podman import - localhost/stand-in/packages
for target in nginx prometheus; do
    podman build "$@" --target "$target" --tag "localhost/stand-in/$target" "$(dirname "$0")"
done
