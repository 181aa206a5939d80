# Builds hosts into .hosts from their Go modules: sh tests/support/hosts.sh tflint tofu vault tofu.exe
# Only the tests use them; the project contains none of their code. Licences: MPL-2.0 (tflint, tofu), BUSL-1.1 (vault).
# Grafana itself is not a Go module, but its SDK (Apache-2.0) is: tests/support/grafana has a host and a plugin with it.
set -eu

module() { # prints the host's Go module and version
    case $1 in
    tflint) echo github.com/terraform-linters/tflint@v0.64.0 ;;
    tofu | tofu.exe) echo github.com/opentofu/opentofu@v1.12.6 ;;
    vault) echo github.com/hashicorp/vault@v1.21.0 ;;
    grafana-client | grafana-twin) echo github.com/grafana/grafana-plugin-sdk-go@v0.299.0 ;;
    *) echo "unknown host: $1 (tests/support/hosts.sh lists the hosts that it can build)" >&2 && return 1 ;;
    esac
}

build() { # in a copy of the module's folder, so that its own go.mod applies, with its replacements
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
    vault) # its go.mod replaces modules by folders that are not in the published module
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
        echo "Building $wanted: this takes a few minutes the first time ..."
        (build "$host")
        echo "$wanted" >".hosts/$host.version"
    fi
done
