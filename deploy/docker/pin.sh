#!/bin/bash
# Pin the base of both images by digest: ask the registry what the tag of their FROM lines is now, and write the answer
# into ARG BASE_DIGEST of both Dockerfiles.
#
#   deploy/docker/pin.sh                                    # of Docker Hub
#   REGISTRY=https://mirror.example deploy/docker/pin.sh    # of a mirror, without credentials
#   deploy/docker/pin.sh --check                            # write nothing; 1 if the pinned digest is not the tag's
#
# The digest is that of the index of all platforms, and is compared with the sha256 of what the registry sent. Needs curl,
# sha256sum and the Distribution API of the registry. Build an image and run its tests before the changes are merged.

set -euo pipefail
cd "$(dirname "$0")"
registry=${REGISTRY:-https://registry-1.docker.io}
files=(Dockerfile Dockerfile.cuda)
indexes="application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "error: $1" >&2
  exit 1
}

get() { # url, then further options of curl; prints the status
  curl --silent --show-error --max-time 60 --dump-header "$work/head" --output "$work/body" --write-out '%{http_code}' "${@:2}" "$1"
}

header() { # its name in lower case
  tr -d '\r' <"$work/head" | sed -n "s/^$1: *//Ip" | tail -n 1
}

challenge() { # a field of the bearer challenge
  header www-authenticate | sed -n "s/.*[ ,]$1=\"\([^\"]*\)\".*/\1/p"
}

mapfile -t bases < <(sed -n 's/^FROM \([a-z0-9./:_-]*:[A-Za-z0-9._-]*\)[$]{BASE_DIGEST}.*/\1/p' "${files[@]}" | sort --unique)
[ "${#bases[@]}" -eq 1 ] || fail "the FROM lines name ${#bases[@]} bases with \${BASE_DIGEST}; expected one"
base=${bases[0]} name=${bases[0]%:*} tag=${bases[0]##*:}
case $name in */*) ;; *) name=library/$name ;; esac

url=$registry/v2/$name/manifests/$tag
status=$(get "$url" --header "Accept: $indexes")
if [ "$status" = 401 ]; then # an anonymous token, as for any pull
  realm=$(challenge realm)
  case $realm in "" | http://*) [ "${registry#http://}" != "$registry" ] || fail "$registry asks for a token from ${realm:-nowhere}; expected an https address" ;; esac
  token=$(curl --silent --show-error --fail --max-time 60 --get --data-urlencode "service=$(challenge service)" \
    --data-urlencode "scope=repository:$name:pull" "$realm" | sed -n 's/.*"\(access_\)\{0,1\}token" *: *"\([^"]*\)".*/\2/p')
  [ -n "$token" ] || fail "$realm gave no token"
  status=$(get "$url" --header "Accept: $indexes" --header "Authorization: Bearer $token")
fi
[ "$status" = 200 ] || fail "$registry answers $status for $base; expected 200"
kind=$(header content-type)
case $indexes in *"${kind%%;*}"*) ;; *) fail "$registry sent $kind for $base; expected the index of all platforms" ;; esac
digest=sha256:$(sha256sum <"$work/body" | cut -d ' ' -f 1)
stated=$(header docker-content-digest)
[ -z "$stated" ] || [ "$stated" = "$digest" ] || fail "$registry states $stated for $base, and sent $digest"

if [ "${1:-}" = --check ]; then
  for file in "${files[@]}"; do
    grep --quiet --line-regexp "ARG BASE_DIGEST=@$digest" "$file" || fail "$base is $digest now, which $file does not pin"
  done
  echo "$base is $digest, as pinned"
  exit
fi
sed --in-place "s|^ARG BASE_DIGEST=.*|ARG BASE_DIGEST=@$digest|" "${files[@]}"
echo "pinned $base to $digest in ${files[*]}"
