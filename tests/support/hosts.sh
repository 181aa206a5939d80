# Builds hosts into .hosts, from their modules in the Go module proxy: sh tests/support/hosts.sh tflint tofu vault tofu.exe
# They are for the tests alone; nothing of them is in this project. Their licences: MPL-2.0 (tflint, tofu), BUSL-1.1 (vault).
# Grafana itself cannot be had there, but its SDK for Go (Apache-2.0): tests/support/grafana has a host and a plugin on that.
set -eu

module() { # of a host, and its version
    case $1 in
    tflint) echo github.com/terraform-linters/tflint@v0.64.0 ;;
    tofu | tofu.exe) echo github.com/opentofu/opentofu@v1.12.6 ;;
    vault) echo github.com/hashicorp/vault@v1.21.0 ;;
    grafana-client | grafana-twin) echo github.com/grafana/grafana-plugin-sdk-go@v0.299.0 ;;
    *) echo "$1 is no host that can be built here: see tests/support/hosts.sh" >&2 && return 1 ;;
    esac
}

build() { # the module's own go.mod counts, with its replacements: so it is built in a copy of its folder
    target=$PWD/.hosts/$1
    ours=$PWD/tests/support/grafana/${1#grafana-}
    source=$(go mod download -json "$(module "$1")" | sed -n 's/.*"Dir": "\(.*\)",$/\1/p')
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp -R "${source:?}/." "$copy"
    chmod -R u+w "$copy"
    cd "$copy"
    case $1 in
    tflint) go build -o "$target" . ;;
    tofu) go build -o "$target" ./cmd/tofu ;;
    tofu.exe) GOOS=windows GOARCH=amd64 go build -o "$target" ./cmd/tofu ;;
    vault) # its replacements by folders of its repository are not in the module
        for part in api api/auth/approle api/auth/kubernetes api/auth/userpass sdk; do
            go mod edit -dropreplace=github.com/hashicorp/vault/$part
        done
        go build -mod=mod -tags minimal -o "$target" . ;;
    grafana-*)
        cp -R "$ours" ours
        go vet ./ours && go build -o "$target" ./ours ;;
    esac
    cd - >/dev/null
}

mkdir -p .hosts
for host in "$@"; do
    wanted=$(module "$host")
    ours=tests/support/grafana/${host#grafana-}
    [ ! -d "$ours" ] || wanted="$wanted $(cat "$ours"/*.go | cksum)"
    if [ ! -x ".hosts/$host" ] || [ "$(cat ".hosts/$host.version" 2>/dev/null)" != "$wanted" ]; then
        echo "Building $wanted: a few minutes, once ..."
        (build "$host")
        echo "$wanted" >".hosts/$host.version"
    fi
done
