// A host as Grafana is one: it starts the plugin in a folder by plugin.json's executable, keeps it alive, and calls it
// with the client of Grafana's SDK for Go. It does what it is told on standard input, one JSON object a line, and
// answers on standard output, in whatever order it ends; as ../../host does, for requests and answers that it knows.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/grpcplugin"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/grafana/grafana-plugin-sdk-go/genproto/pluginv2"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/status"
)

// config is the host's only argument.
type config struct {
	Folder      string   `json:"folder"`        // the plugin's
	SkipHostEnv bool     `json:"skip_host_env"` // Grafana's feature pluginsSkipHostEnvVars
	Env         []string `json:"env"`           // what Grafana sets besides
}

type request struct {
	ID      int             `json:"id"`
	Op      string          `json:"op"`
	Method  string          `json:"method"`
	Request json.RawMessage `json:"request"` // the SDK's type for the method, as JSON
	Stream  int             `json:"stream"`
}

type response map[string]any

// buffer collects what several goroutines write.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// services is what Grafana's ClientV2 has.
type services struct {
	pluginv2.DiagnosticsClient
	pluginv2.ResourceClient
	pluginv2.DataClient
	pluginv2.StreamClient
	pluginv2.AdmissionControlClient
	pluginv2.ResourceConversionClient
}

type stream struct {
	next   func() (any, error)
	cancel context.CancelFunc
}

type host struct {
	config
	log     buffer
	mu      sync.Mutex
	client  *plugin.Client
	plugin  services
	starts  int
	stopped bool
	streams map[int]stream
}

func main() {
	h := &host{streams: map[int]stream{}}
	if err := json.Unmarshal([]byte(os.Args[1]), &h.config); err != nil {
		panic(err)
	}
	defer h.stop()
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
			answer, err := h.do(r)
			if answer == nil {
				answer = response{}
			}
			if err != nil {
				s := status.Convert(err)
				answer["error"], answer["code"] = s.Message(), s.Code().String()
			}
			answer["id"] = r.ID
			outMu.Lock()
			defer outMu.Unlock()
			if err := out.Encode(answer); err != nil {
				panic(err)
			}
		}()
	}
}

// executable is the name that Grafana starts: that of plugin.json, for this kind of machine.
func (h *host) executable() (string, error) {
	text, err := os.ReadFile(filepath.Join(h.Folder, "plugin.json"))
	if err != nil {
		return "", err
	}
	var manifest struct{ Executable string }
	if err := json.Unmarshal(text, &manifest); err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s_%s_%s", manifest.Executable, runtime.GOOS, runtime.GOARCH)
	return filepath.Join(h.Folder, name), nil
}

func (h *host) start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	path, err := h.executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(path)
	cmd.Env = h.Env
	h.client = plugin.NewClient(&plugin.ClientConfig{
		Cmd: cmd,
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: grpcplugin.ProtocolVersion,
			MagicCookieKey: grpcplugin.MagicCookieKey, MagicCookieValue: grpcplugin.MagicCookieValue},
		VersionedPlugins: map[int]plugin.PluginSet{grpcplugin.ProtocolVersion: {
			"diagnostics": &grpcplugin.DiagnosticsGRPCPlugin{},
			"resource":    &grpcplugin.ResourceGRPCPlugin{},
			"data":        &grpcplugin.DataGRPCPlugin{},
			"stream":      &grpcplugin.StreamGRPCPlugin{},
			"admission":   &grpcplugin.AdmissionGRPCPlugin{},
			"conversion":  &grpcplugin.ConversionGRPCPlugin{},
		}},
		SkipHostEnv:      h.SkipHostEnv,
		Logger:           hclog.New(&hclog.LoggerOptions{Name: "host", Level: hclog.Trace, Output: &h.log, JSONFormat: true}),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
	})
	protocol, err := h.client.Client()
	if err != nil {
		return err
	}
	dispense := func(name string) any {
		raw, dispenseErr := protocol.Dispense(name)
		err = errors.Join(err, dispenseErr)
		return raw
	}
	h.plugin.DiagnosticsClient, _ = dispense("diagnostics").(grpcplugin.DiagnosticsClient)
	h.plugin.ResourceClient, _ = dispense("resource").(grpcplugin.ResourceClient)
	h.plugin.DataClient, _ = dispense("data").(grpcplugin.DataClient)
	h.plugin.StreamClient, _ = dispense("stream").(grpcplugin.StreamClient)
	h.plugin.AdmissionControlClient, _ = dispense("admission").(grpcplugin.AdmissionClient)
	h.plugin.ResourceConversionClient, _ = dispense("conversion").(grpcplugin.ConversionClient)
	h.starts++
	return err
}

func (h *host) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	if h.client != nil {
		h.client.Kill()
	}
}

// keepAlive starts the plugin again when it has ended; like Grafana, it looks once a second.
func (h *host) keepAlive() {
	for range time.Tick(time.Second) {
		h.mu.Lock()
		stopped, exited := h.stopped, h.client.Exited()
		h.mu.Unlock()
		if stopped {
			return
		}
		if exited {
			if err := h.start(); err != nil {
				fmt.Fprintln(&h.log, `{"@message":"cannot restart the plugin"}`)
			}
		}
	}
}

func (h *host) do(r request) (response, error) {
	switch r.Op {
	case "start":
		err := h.start()
		if err == nil {
			go h.keepAlive()
		}
		return h.state(), err
	case "state":
		return h.state(), nil
	case "stop":
		begin := time.Now()
		h.stop()
		return response{"seconds": time.Since(begin).Seconds()}, nil
	case "log":
		return response{"text": h.log.String()}, nil
	case "call":
		answer, err := h.call(r)
		return response{"answer": answer}, err
	case "open":
		ctx, cancel := context.WithCancel(context.Background())
		next, err := h.open(ctx, r)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.streams[r.Stream] = stream{next, cancel}
		return nil, err
	case "recv":
		answer, err := h.stream(r).next()
		if errors.Is(err, io.EOF) {
			return response{"end": true}, nil
		}
		return response{"answer": answer}, err
	case "cancel":
		h.stream(r).cancel()
		return nil, nil
	}
	return nil, fmt.Errorf("no such op: %s", r.Op)
}

func (h *host) state() response {
	h.mu.Lock()
	defer h.mu.Unlock()
	answer := response{"starts": h.starts, "version": h.client.NegotiatedVersion()}
	if re := h.client.ReattachConfig(); re != nil {
		answer["pid"], answer["address"] = re.Pid, re.Addr.String()
	}
	return answer
}

func (h *host) stream(r request) stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams[r.Stream]
}

func (h *host) services() services {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.plugin
}

// decode makes the SDK's request of the test's JSON.
func decode[T any](r request) (*T, error) {
	value := new(T)
	return value, json.Unmarshal(r.Request, value)
}

// call makes a unary call, and returns the answer as the SDK understands it: what a browser gets from Grafana.
func (h *host) call(r request) (any, error) {
	ctx, p := context.Background(), h.services()
	switch r.Method {
	case "CheckHealth":
		asked, err := decode[backend.CheckHealthRequest](r)
		if err != nil {
			return nil, err
		}
		answer, err := p.CheckHealth(ctx, &pluginv2.CheckHealthRequest{
			PluginContext: backend.ToProto().PluginContext(asked.PluginContext)})
		if err != nil {
			return nil, err
		}
		result := backend.FromProto().CheckHealthResponse(answer)
		return response{"status": result.Status.String(), "message": result.Message, "details": string(result.JSONDetails)}, nil
	case "QueryData":
		asked, err := decode[backend.QueryDataRequest](r)
		if err != nil {
			return nil, err
		}
		answer, err := p.QueryData(ctx, backend.ToProto().QueryDataRequest(asked))
		if err != nil {
			return nil, err
		}
		return backend.FromProto().QueryDataResponse(answer)
	case "SubscribeStream":
		asked, err := decode[backend.SubscribeStreamRequest](r)
		if err != nil {
			return nil, err
		}
		answer, err := p.SubscribeStream(ctx, backend.ToProto().SubscribeStreamRequest(asked))
		if err != nil {
			return nil, err
		}
		result := backend.FromProto().SubscribeStreamResponse(answer)
		return response{"status": result.Status, "data": json.RawMessage(orNull(answer.Data))}, nil
	case "PublishStream":
		asked, err := decode[backend.PublishStreamRequest](r)
		if err != nil {
			return nil, err
		}
		answer, err := p.PublishStream(ctx, backend.ToProto().PublishStreamRequest(asked))
		if err != nil {
			return nil, err
		}
		return response{"status": answer.Status, "data": json.RawMessage(orNull(answer.Data))}, nil
	case "CollectMetrics":
		answer, err := p.CollectMetrics(ctx, backend.ToProto().CollectMetricsRequest(&backend.CollectMetricsRequest{}))
		if err != nil {
			return nil, err
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		_, err = parser.TextToMetricFamilies(bytes.NewReader(answer.Metrics.Prometheus))
		return string(answer.Metrics.Prometheus), err
	case "ValidateAdmission":
		return p.ValidateAdmission(ctx, &pluginv2.AdmissionRequest{})
	case "ConvertObjects":
		return p.ConvertObjects(ctx, &pluginv2.ConversionRequest{})
	}
	return nil, fmt.Errorf("no such method: %s", r.Method)
}

func orNull(text []byte) []byte {
	if len(text) == 0 {
		return []byte("null")
	}
	return text
}

// open begins a call whose answer is a stream; what it returns receives the next message.
func (h *host) open(ctx context.Context, r request) (func() (any, error), error) {
	p := h.services()
	switch r.Method {
	case "CallResource":
		asked, err := decode[backend.CallResourceRequest](r)
		if err != nil {
			return nil, err
		}
		s, err := p.CallResource(ctx, backend.ToProto().CallResourceRequest(asked))
		return func() (any, error) {
			m, err := s.Recv()
			if err != nil {
				return nil, err
			}
			one := backend.FromProto().CallResourceResponse(m)
			return response{"status": one.Status, "headers": one.Headers, "body": string(one.Body)}, nil
		}, err
	case "QueryChunkedData":
		asked, err := decode[backend.QueryChunkedDataRequest](r)
		if err != nil {
			return nil, err
		}
		s, err := p.QueryChunkedData(ctx, backend.ToProto().QueryChunkedDataRequest(asked))
		return func() (any, error) {
			m, err := s.Recv()
			if err != nil {
				return nil, err
			}
			answer := response{"refId": m.RefId, "frameId": m.FrameId, "status": m.Status, "error": m.Error,
				"errorSource": m.ErrorSource, "format": m.Format}
			if m.Format == pluginv2.DataFrameFormat_JSON {
				answer["frame"] = json.RawMessage(orNull(m.Frame))
			} else if len(m.Frame) > 0 {
				answer["frame"], err = data.UnmarshalArrowFrame(m.Frame)
			}
			return answer, err
		}, err
	case "RunStream":
		asked, err := decode[backend.RunStreamRequest](r)
		if err != nil {
			return nil, err
		}
		s, err := p.RunStream(ctx, backend.ToProto().RunStreamRequest(asked))
		return func() (any, error) {
			m, err := s.Recv()
			if err != nil {
				return nil, err
			}
			return json.RawMessage(m.Data), nil
		}, err
	}
	return nil, fmt.Errorf("no such method: %s", r.Method)
}
