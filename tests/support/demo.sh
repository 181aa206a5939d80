# For `make demo`: in the folder demo, go-plugin's own KV command puts and gets a value through plugin.py.
set -e
host=github.com/hashicorp/go-plugin/examples/grpc@v1.8.0
export KV_PROTO=grpc KV_PLUGIN="python ../plugin.py"

# To stderr, because README shows exactly what stdout gets.
echo "Building go-plugin's KV host; the first time this takes about a minute ..." >&2

mkdir -p demo
cd demo
kv() {
    echo "\$ go run $host $*"
    go run $host "$@" 2>host.log || { cat host.log; exit 1; }
}

echo "\$ . .venv/bin/activate"
echo "\$ cd demo"
echo "\$ export KV_PROTO=$KV_PROTO KV_PLUGIN=\"$KV_PLUGIN\""
kv put hello world
kv get hello
echo
echo "Type the lines after \$ to do it by hand. The value is in the file demo/kv_hello."
