// The host of the benchmark: it starts plugins with go-plugin, exactly as any Go program does, keeps several of them
// open at a time, and measures on one of them what it is told on standard input, one JSON object a line. It answers
// each with one JSON object a line on standard output, in order, so that rounds can be interleaved by the program that
// asks.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/examples/grpc/proto"
	"github.com/hashicorp/go-plugin/examples/grpc/shared"
	"google.golang.org/grpc"
)

// callTimeout ends a call that is not answered at all; what is measured takes milliseconds.
const callTimeout = 20 * time.Second

// request is one line of standard input. Peer names the plugin from "open" to "kill".
type request struct {
	Op        string   `json:"op"`
	Peer      string   `json:"peer"`
	Cmd       []string `json:"cmd"`
	Dir       string   `json:"dir"`
	AutoMTLS  bool     `json:"auto_mtls"`
	Multiplex bool     `json:"multiplex"`
	Method    string   `json:"method"` // Get or Put
	Key       string   `json:"key"`
	Size      int      `json:"size"`   // of the value that Put sends, in bytes
	Flight    int      `json:"flight"` // calls at a time
	Seconds   float64  `json:"seconds"`
}

type answer map[string]any

// kvPlugin hands out the client that go-plugin's own example generates.
type kvPlugin struct{ plugin.NetRPCUnsupportedPlugin }

func (kvPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("the benchmark is no plugin")
}

func (kvPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return proto.NewKVClient(c), nil
}

// tail keeps the end of what a plugin wrote to stderr, to say why it failed.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	t.data = t.data[max(0, len(t.data)-4096):]
	return len(p), nil
}

func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(t.data))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// opened is a plugin that runs.
type opened struct {
	client *plugin.Client
	kv     proto.KVClient
	mark   string
}

type host map[string]*opened

func main() {
	h := host{}
	defer plugin.CleanupClients()
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			panic(err)
		}
		result, err := h.do(r)
		if result == nil {
			result = answer{}
		}
		if err != nil {
			result["error"] = err.Error()
			if o := h[r.Peer]; o != nil && o.client.Exited() {
				result["exited"] = true
			}
		}
		if err := out.Encode(result); err != nil {
			return
		}
	}
}

func (h host) do(r request) (answer, error) {
	if r.Op == "open" {
		return h.open(r)
	}
	if r.Op == "certificate" {
		return certificate()
	}
	o := h[r.Peer]
	if o == nil {
		return nil, fmt.Errorf("%q is not open", r.Peer)
	}
	switch r.Op {
	case "kill":
		delete(h, r.Peer)
		begin := time.Now()
		o.client.Kill()
		return answer{"seconds": time.Since(begin).Seconds()}, nil
	case "check":
		return nil, o.check()
	case "load":
		return o.load(r)
	case "wait":
		return o.wait(r.Flight)
	case "memory":
		return memory(o.mark)
	case "strangers":
		return strangers(o.client.ReattachConfig().Addr)
	}
	return nil, fmt.Errorf("no such op: %q", r.Op)
}

// open starts a plugin, and says how long it took until it was ready: until the first call could be made.
func (h host) open(r request) (answer, error) {
	var stderr tail
	cmd := exec.Command(r.Cmd[0], r.Cmd[1:]...)
	cmd.Dir = r.Dir
	// All that the plugin starts inherits the mark; memory() finds it by that.
	mark := fmt.Sprintf("BENCH_MARK=%d-%s-%d", os.Getpid(), r.Peer, time.Now().UnixNano())
	cmd.Env = []string{mark}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:     shared.Handshake,
		Plugins:             plugin.PluginSet{"kv": kvPlugin{}},
		Cmd:                 cmd,
		AllowedProtocols:    []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:            r.AutoMTLS,
		GRPCBrokerMultiplex: r.Multiplex,
		StartTimeout:        callTimeout,
		Stderr:              &stderr,
		Managed:             true,
		Logger:              hclog.NewNullLogger(),
	})
	begin := time.Now()
	kv, err := ready(client)
	seconds := time.Since(begin).Seconds()
	if err != nil {
		client.Kill()
		if line := stderr.lastLine(); line != "" {
			err = fmt.Errorf("%w; its last line on stderr: %s", err, line)
		}
		return nil, err
	}
	h[r.Peer] = &opened{client, kv, mark}
	return answer{"seconds": seconds}, nil
}

func ready(client *plugin.Client) (proto.KVClient, error) {
	protocol, err := client.Client()
	if err != nil {
		return nil, err
	}
	if err := protocol.Ping(); err != nil {
		return nil, err
	}
	kv, err := protocol.Dispense("kv")
	if err != nil {
		return nil, err
	}
	return kv.(proto.KVClient), nil
}

// check makes sure that the peers do the same work: Get returns what Put stored, and the plugin's words after it.
func (o *opened) check() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := o.kv.Put(ctx, &proto.PutRequest{Key: "check", Value: []byte("hello")}); err != nil {
		return err
	}
	response, err := o.kv.Get(ctx, &proto.GetRequest{Key: "check"})
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(response.Value), "hello\n\nWritten from ") {
		return fmt.Errorf("Get returned %q after Put of \"hello\"", response.Value)
	}
	return nil
}
