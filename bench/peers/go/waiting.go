// The Go plugin of go-plugin's KV example with a handler that waits: Get of the key "wait" sleeps 100 ms.
package main

import (
	"time"

	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/examples/grpc/shared"
)

type waitingKV struct{}

func (waitingKV) Put(string, []byte) error { return nil }

func (waitingKV) Get(string) ([]byte, error) {
	time.Sleep(100 * time.Millisecond)
	return []byte("waited"), nil
}

func main() {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: shared.Handshake,
		Plugins:         plugin.PluginSet{"kv": &shared.KVGRPCPlugin{Impl: waitingKV{}}},
		GRPCServer:      plugin.DefaultGRPCServer,
	})
}
