// The host of the tests and the benchmark. It starts a plugin with go-plugin, exactly as any Go program does. It reads
// requests from standard input, one JSON object a line, and writes the answers to standard output in the order in which
// they are ready. Each answer has the seconds that it took.
//
// It knows no service: requests and responses are bytes, which the tests and the benchmark encode and decode.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// config is the host's only argument: the ClientConfig to use.
type config struct {
	Cmd          []string  `json:"cmd"`
	Dir          string    `json:"dir"`
	Cookie       [2]string `json:"cookie"`
	Versions     []int     `json:"versions"`
	MinPort      uint      `json:"min_port"`
	MaxPort      uint      `json:"max_port"`
	AutoMTLS     bool      `json:"auto_mtls"`
	Certificate  [2]string `json:"certificate"` // files of the host's certificate and key, for a plugin with a TLSProvider
	Multiplex    bool      `json:"multiplex"`
	Runner       bool      `json:"runner"`    // start the plugin by a RunnerFunc, as a container runner does
	Container    string    `json:"container"` // the path in the container of the folder of sockets, which is SHARED here
	Group        string    `json:"group"`
	Reattach     *reattach `json:"reattach"`
	StderrFile   string    `json:"stderr_file"`
	NoStdio      bool      `json:"no_stdio"`      // never open the stdio stream
	StartTimeout int       `json:"start_timeout"` // seconds
	StallStdout  bool      `json:"stall_stdout"`  // stop reading stdout at the first output, until "resume"
	Checksum     []byte    `json:"checksum"`      // SHA-256 of the plugin's file; base64 in JSON
	NetRPC       bool      `json:"net_rpc"`       // want a plugin that speaks net/rpc
}

// reattach is one entry of the JSON that Terraform reads from TF_REATTACH_PROVIDERS.
type reattach struct {
	Protocol        string
	ProtocolVersion int
	Pid             int
	Test            bool
	Addr            struct{ Network, String string }
}

type request struct {
	ID      int    `json:"id"`
	Op      string `json:"op"`
	Method  string `json:"method"`
	Message []byte `json:"message"` // base64 in JSON
	Repeat  int    `json:"repeat"`
	Size    int    `json:"size"`
	Stream  int    `json:"stream"`
	Broker  uint32 `json:"broker"`
	Seconds float64
}

type response map[string]any

// rawCodec passes messages on as bytes.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// rawPlugin hands out the connection and the broker themselves.
type rawPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	version int
}

type dispensed struct {
	conn    *grpc.ClientConn
	broker  *plugin.GRPCBroker
	version int
}

func (*rawPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }
func (p *rawPlugin) GRPCClient(_ context.Context, b *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return &dispensed{c, b, p.version}, nil
}

// buffer collects the output of several goroutines.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]byte{}, b.data.Bytes()...)
}

type host struct {
	client              *plugin.Client
	plugin              *dispensed
	log, stdout, stderr buffer
	mu                  sync.Mutex
	streams             map[int]grpc.ClientStream
	cancels             map[int]context.CancelFunc
	brokered            map[uint32]*grpc.ClientConn
	servers             map[uint32]*grpc.Server
	resume              chan struct{}
}

// stallingWriter makes its writer wait until resume is closed.
type stallingWriter struct {
	buffer *buffer
	resume chan struct{}
}

func (w stallingWriter) Write(p []byte) (int, error) {
	<-w.resume
	return w.buffer.Write(p)
}

func main() {
	var c config
	if err := json.Unmarshal([]byte(os.Args[1]), &c); err != nil {
		panic(err)
	}
	h := &host{
		streams: map[int]grpc.ClientStream{}, cancels: map[int]context.CancelFunc{},
		brokered: map[uint32]*grpc.ClientConn{}, servers: map[uint32]*grpc.Server{},
		resume: make(chan struct{}),
	}
	h.client = plugin.NewClient(h.clientConfig(c))
	defer h.client.Kill()

	out := json.NewEncoder(os.Stdout)
	var outMu sync.Mutex
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			panic(err)
		}
		go func() {
			begin := time.Now()
			answer, err := h.do(r)
			seconds := time.Since(begin).Seconds()
			if answer == nil {
				answer = response{}
			}
			if err != nil {
				s := status.Convert(err)
				answer["error"], answer["code"] = s.Message(), s.Code().String()
			}
			answer["id"], answer["seconds"] = r.ID, seconds
			outMu.Lock()
			defer outMu.Unlock()
			_ = out.Encode(answer)
		}()
	}
}

func (h *host) clientConfig(c config) *plugin.ClientConfig {
	cc := &plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			MagicCookieKey: c.Cookie[0], MagicCookieValue: c.Cookie[1]},
		VersionedPlugins: map[int]plugin.PluginSet{},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		MinPort:          c.MinPort, MaxPort: c.MaxPort,
		AutoMTLS:            c.AutoMTLS,
		GRPCBrokerMultiplex: c.Multiplex,
		SyncStdout:          &h.stdout, SyncStderr: &h.stderr,
		StartTimeout: 30 * time.Second,
		Logger: hclog.New(&hclog.LoggerOptions{
			Name: "host", Level: hclog.Trace, Output: &h.log, JSONFormat: true}),
	}
	for _, v := range c.Versions {
		cc.VersionedPlugins[v] = plugin.PluginSet{"raw": &rawPlugin{version: v}}
	}
	if c.StderrFile != "" {
		f, err := os.Create(c.StderrFile)
		if err != nil {
			panic(err)
		}
		cc.Stderr = f
	}
	if c.Certificate[0] != "" {
		pair, err := tls.LoadX509KeyPair(c.Certificate[0], c.Certificate[1])
		if err != nil {
			panic(err)
		}
		// The test's certificates are self-signed, and one serves both sides.
		cc.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
	}
	if len(c.Checksum) > 0 {
		cc.SecureConfig = &plugin.SecureConfig{Checksum: c.Checksum, Hash: sha256.New()}
	}
	if c.NetRPC {
		cc.AllowedProtocols = []plugin.Protocol{plugin.ProtocolNetRPC}
	}
	if c.StartTimeout > 0 {
		cc.StartTimeout = time.Duration(c.StartTimeout) * time.Second
	}
	if c.StallStdout {
		cc.SyncStdout = stallingWriter{&h.stdout, h.resume}
	}
	if c.NoStdio {
		cc.GRPCDialOptions = append(cc.GRPCDialOptions, grpc.WithStreamInterceptor(
			func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, s grpc.Streamer,
				o ...grpc.CallOption) (grpc.ClientStream, error) {
				if method == "/plugin.GRPCStdio/StreamStdio" {
					return nil, status.Error(codes.Unimplemented, "not opened")
				}
				return s(ctx, d, cc, method, o...)
			}))
	}
	switch {
	case c.Reattach != nil:
		r := c.Reattach
		var addr net.Addr = &net.UnixAddr{Net: "unix", Name: r.Addr.String}
		if r.Addr.Network == "tcp" {
			addr, _ = net.ResolveTCPAddr("tcp", r.Addr.String)
		}
		cc.Reattach = &plugin.ReattachConfig{Protocol: plugin.Protocol(r.Protocol),
			ProtocolVersion: r.ProtocolVersion, Pid: r.Pid, Test: r.Test, Addr: addr}
		cc.Plugins = cc.VersionedPlugins[r.ProtocolVersion]
	case c.Runner:
		cc.UnixSocketConfig = &plugin.UnixSocketConfig{Group: c.Group, TempDir: c.Dir}
		cc.RunnerFunc = func(_ hclog.Logger, spec *exec.Cmd, sockets string) (runner.Runner, error) {
			cmd := exec.Command(c.Cmd[0], c.Cmd[1:]...)
			cmd.Dir, cmd.Env = c.Dir, spec.Env
			if c.Container != "" {
				cmd.Env = append(cmd.Env, "SHARED="+sockets, plugin.EnvUnixSocketDir+"="+c.Container)
			}
			return newRunner(cmd, sockets, c.Container)
		}
	default:
		cc.Cmd = exec.Command(c.Cmd[0], c.Cmd[1:]...)
		cc.Cmd.Dir = c.Dir
	}
	return cc
}

func (h *host) do(r request) (response, error) {
	switch r.Op {
	case "start":
		protocol, err := h.client.Client()
		if err != nil {
			return nil, err
		}
		raw, err := protocol.Dispense("raw")
		if err != nil {
			return nil, err
		}
		h.plugin = raw.(*dispensed)
		answer := response{"version": h.client.NegotiatedVersion()}
		if re := h.client.ReattachConfig(); re != nil {
			answer["network"], answer["address"] = re.Addr.Network(), re.Addr.String()
			answer["pid"] = re.Pid
		}
		return answer, nil

	case "ping":
		protocol, err := h.client.Client()
		if err != nil {
			return nil, err
		}
		return nil, protocol.Ping()

	case "call": // a unary call; Repeat of them, in that many goroutines, when set
		conn := h.conn(r.Broker)
		if r.Repeat == 0 {
			ctx, cancel := r.context()
			defer cancel()
			if r.Size > 0 { // metadata of that size
				ctx = metadata.AppendToOutgoingContext(ctx, "x-size", strings.Repeat("m", r.Size))
			}
			var out []byte
			var trailer metadata.MD
			err := conn.Invoke(ctx, r.Method, &r.Message, &out, grpc.ForceCodec(rawCodec{}), grpc.Trailer(&trailer))
			size := 0
			for _, value := range trailer.Get("x-size") {
				size += len(value)
			}
			return response{"message": out, "trailer": size}, err
		}
		errs := make(chan error, r.Repeat)
		for range r.Repeat {
			go func() {
				var out []byte
				errs <- conn.Invoke(context.Background(), r.Method, &r.Message, &out, grpc.ForceCodec(rawCodec{}))
			}()
		}
		var all []error
		for range r.Repeat {
			all = append(all, <-errs)
		}
		return nil, errors.Join(all...)
	case "load":
		return load(h.plugin.conn, r)

	case "open": // a stream of any kind, known as Stream from here on
		ctx, cancel := r.context()
		s, err := h.conn(r.Broker).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
			r.Method, grpc.ForceCodec(rawCodec{}))
		if err != nil {
			cancel()
			return nil, err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.streams[r.Stream], h.cancels[r.Stream] = s, cancel
		return nil, nil
	case "send":
		return nil, h.stream(r).SendMsg(&r.Message)
	case "half_close":
		return nil, h.stream(r).CloseSend()
	case "recv":
		var out []byte
		err := h.stream(r).RecvMsg(&out)
		if errors.Is(err, io.EOF) {
			return response{"end": true}, nil
		}
		return response{"message": out}, err
	case "cancel":
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cancels[r.Stream]()
		return nil, nil

	case "accept": // serve under a brokered id: any method echoes its request, or fails with a text of Size bytes
		go h.plugin.broker.AcceptAndServe(r.Broker, func(opts []grpc.ServerOption) *grpc.Server {
			opts = append(opts, grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(echo(r.Size)),
				grpc.MaxRecvMsgSize(1<<30), grpc.MaxSendMsgSize(1<<30))
			s := grpc.NewServer(opts...)
			h.mu.Lock()
			defer h.mu.Unlock()
			h.servers[r.Broker] = s
			return s
		})
		return nil, nil
	case "stop": // end a server of "accept"
		h.mu.Lock()
		defer h.mu.Unlock()
		h.servers[r.Broker].Stop()
		return nil, nil
	case "dial": // connect to the plugin's server under a brokered id
		conn, err := h.plugin.broker.Dial(r.Broker)
		if err != nil {
			return nil, err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.brokered[r.Broker] = conn
		return nil, nil
	case "next_id":
		return response{"broker": h.plugin.broker.NextId()}, nil

	case "intrude": // as the stranger in Method
		return nil, intrude(r.Method, h.client.ReattachConfig().Addr)
	case "certificate":
		return certificate()
	case "mirror": // call Method with Repeat messages of Size random bytes, each of which must come back
		message := make([]byte, r.Size)
		for range r.Repeat {
			if _, err := rand.Read(message); err != nil {
				return nil, err
			}
			var out []byte
			if err := h.plugin.conn.Invoke(context.Background(), r.Method, &message, &out,
				grpc.ForceCodec(rawCodec{})); err != nil {
				return nil, err
			}
			if !bytes.Equal(message, out) {
				return nil, errors.New("what came back is not what was sent")
			}
		}
		return nil, nil
	case "resume":
		close(h.resume)
		return nil, nil
	case "disconnect":
		return nil, h.plugin.conn.Close()
	case "log":
		return response{"text": string(h.log.bytes())}, nil
	case "stdio":
		return response{"stdout": h.stdout.bytes(), "stderr": h.stderr.bytes()}, nil
	case "exited":
		return response{"exited": h.client.Exited()}, nil
	case "kill":
		h.client.Kill()
		return nil, nil
	}
	return nil, fmt.Errorf("no such op: %q", r.Op)
}

func (h *host) conn(broker uint32) *grpc.ClientConn {
	if broker == 0 {
		return h.plugin.conn
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.brokered[broker]
}

func (h *host) stream(r request) grpc.ClientStream {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams[r.Stream]
}

func (r request) context() (context.Context, context.CancelFunc) {
	if r.Seconds == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), time.Duration(r.Seconds*float64(time.Second)))
}

func echo(failure int) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		if failure > 0 {
			return status.Error(codes.Internal, strings.Repeat("e", failure))
		}
		for {
			var message []byte
			if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
		}
	}
}
