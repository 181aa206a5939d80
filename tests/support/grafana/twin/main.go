// The data source of examples/grafana, as its author would write it in Go, on Grafana's SDK. The tests compare the two.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/datasource"
	"github.com/grafana/grafana-plugin-sdk-go/backend/instancemgmt"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	live  = "live/"
	chunk = 1000
)

var queries = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "sensors_queries_total", Help: "Queries for the values of a sensor."}, []string{"status"})

// apiError is for the user; status is HTTP's.
type apiError struct {
	status  int
	message string
}

func (e apiError) Error() string { return e.message }

type sensor struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
}

type api struct {
	url, token string
	timeout    time.Duration
}

func apiOf(p backend.PluginContext) (*api, error) {
	s := p.DataSourceInstanceSettings
	a := &api{url: strings.TrimRight(s.URL, "/"), token: s.DecryptedSecureJSONData["token"]}
	if !(strings.HasPrefix(a.url, "http://") || strings.HasPrefix(a.url, "https://")) || a.token == "" {
		return nil, apiError{400, "Set the URL and the token in the data source's settings"}
	}
	settings := struct{ Timeout float64 }{10}
	if err := json.Unmarshal(s.JSONData, &settings); err != nil {
		return nil, apiError{400, "timeout in the data source's settings must be a number of seconds"}
	}
	a.timeout = time.Duration(settings.Timeout * float64(time.Second))
	return a, nil
}

func (a *api) get(path string, into any) error {
	request, err := http.NewRequest(http.MethodGet, a.url+"/"+path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+a.token)
	answer, err := (&http.Client{Timeout: a.timeout}).Do(request)
	if err != nil {
		return apiError{502, fmt.Sprintf("%s does not work: %v", a.url, err)}
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return apiError{answer.StatusCode, fmt.Sprintf("%s answered %s", a.url, answer.Status)}
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func (a *api) sensors() (all []sensor, err error) { return all, a.get("sensors", &all) }

func (a *api) sensor(name string) (sensor, error) {
	all, err := a.sensors()
	if err != nil {
		return sensor{}, err
	}
	for _, one := range all {
		if one.Name == name {
			return one, nil
		}
	}
	return sensor{}, apiError{404, fmt.Sprintf("There is no sensor '%s'", name)}
}

type row struct {
	ms    int64
	value *float64
}

func (r *row) UnmarshalJSON(text []byte) error {
	pair := []any{&r.ms, &r.value}
	return json.Unmarshal(text, &pair)
}

func (a *api) values(name string, query url.Values) (rows []row, err error) {
	return rows, a.get("sensors/"+url.PathEscape(name)+"?"+query.Encode(), &rows)
}

func times(start, end, step int64) url.Values {
	return url.Values{"start": {strconv.FormatInt(start, 10)}, "end": {strconv.FormatInt(end, 10)},
		"step": {strconv.FormatInt(step, 10)}}
}

func toFrame(s sensor, rows []row, channel string) *data.Frame {
	at, values := make([]time.Time, len(rows)), make([]*float64, len(rows))
	for i, r := range rows {
		at[i], values[i] = time.UnixMilli(r.ms), r.value
	}
	value := data.NewField("value", data.Labels{"sensor": s.Name}, values).SetConfig(&data.FieldConfig{Unit: s.Unit})
	frame := data.NewFrame(s.Name, data.NewField("time", nil, at), value)
	return frame.SetMeta(&data.FrameMeta{
		Type: data.FrameTypeTimeSeriesMulti, TypeVersion: data.FrameTypeVersion{0, 1}, Channel: channel})
}

type source struct{}

// frames answers a query, in frames of so many rows.
func (source) frames(p backend.PluginContext, q backend.DataQuery, most int) (frames data.Frames, err error) {
	defer func() {
		if err != nil {
			queries.WithLabelValues("error").Inc()
		} else {
			queries.WithLabelValues("ok").Inc()
		}
	}()
	a, err := apiOf(p)
	if err != nil {
		return nil, err
	}
	var asked struct{ Sensor string }
	if err := json.Unmarshal(q.JSON, &asked); err != nil || asked.Sensor == "" {
		return nil, apiError{400, "Choose a sensor"}
	}
	found, err := a.sensor(asked.Sensor)
	if err != nil {
		return nil, err
	}
	step := max(q.Interval.Milliseconds(), 1)
	rows, err := a.values(found.Name, times(q.TimeRange.From.UnixMilli(), q.TimeRange.To.UnixMilli(), step))
	if err != nil {
		return nil, err
	}
	channel := fmt.Sprintf("ds/%s/%s%s", p.DataSourceInstanceSettings.UID, live, found.Name)
	for start := 0; start < max(len(rows), 1); start += most {
		frames = append(frames, toFrame(found, rows[start:min(start+most, len(rows))], channel))
	}
	return frames, nil
}

func (s source) QueryData(_ context.Context, r *backend.QueryDataRequest) (*backend.QueryDataResponse, error) {
	answer := backend.NewQueryDataResponse()
	for _, q := range r.Queries {
		frames, err := s.frames(r.PluginContext, q, math.MaxInt32)
		var failed apiError
		if errors.As(err, &failed) {
			answer.Responses[q.RefID] = backend.DataResponse{
				Error: err, Status: backend.Status(failed.status), ErrorSource: backend.ErrorSourceDownstream}
		} else if err != nil {
			return nil, err
		} else {
			answer.Responses[q.RefID] = backend.DataResponse{Frames: frames}
		}
	}
	return answer, nil
}

func (s source) QueryChunkedData(
	ctx context.Context, r *backend.QueryChunkedDataRequest, w backend.ChunkedDataWriter) error {
	for _, q := range r.Queries {
		frames, err := s.frames(r.PluginContext, q, chunk)
		var failed apiError
		if errors.As(err, &failed) {
			if err := w.WriteError(ctx, q.RefID, backend.Status(failed.status), err); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		for _, piece := range frames {
			if err := w.WriteFrame(ctx, q.RefID, "values", piece); err != nil {
				return err
			}
		}
	}
	return nil
}

func (source) CheckHealth(_ context.Context, r *backend.CheckHealthRequest) (*backend.CheckHealthResult, error) {
	a, err := apiOf(r.PluginContext)
	var all []sensor
	if err == nil {
		all, err = a.sensors()
	}
	if err != nil {
		backend.Logger.Warn("not healthy", "reason", err.Error())
		return &backend.CheckHealthResult{Status: backend.HealthStatusError, Message: err.Error()}, nil
	}
	return &backend.CheckHealthResult{Status: backend.HealthStatusOk,
		Message:     fmt.Sprintf("It works: there are %d sensors", len(all)),
		JSONDetails: fmt.Appendf(nil, `{"sensors": %d}`, len(all))}, nil
}

func reply(sender backend.CallResourceResponseSender, status int, body any, headers map[string][]string) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	all := map[string][]string{"Content-Type": {"application/json"}}
	for name, values := range headers {
		all[name] = values
	}
	return sender.Send(&backend.CallResourceResponse{Status: status, Headers: all, Body: text})
}

func (s source) CallResource(
	_ context.Context, r *backend.CallResourceRequest, sender backend.CallResourceResponseSender) error {
	path := strings.Trim(r.Path, "/")
	var err error
	switch {
	case path == "sensors" && r.Method == http.MethodGet:
		var a *api
		var all []sensor
		if a, err = apiOf(r.PluginContext); err == nil {
			if all, err = a.sensors(); err == nil {
				return reply(sender, 200, all, nil)
			}
		}
	case path == "export" && r.Method == http.MethodGet:
		err = s.export(r, sender)
	case path == "sensors" || path == "export":
		return reply(sender, 405, map[string]string{"error": path + " takes GET alone"},
			map[string][]string{"Allow": {"GET"}})
	default:
		return reply(sender, 404, map[string]string{"error": "there is no " + path}, nil)
	}
	var failed apiError
	if errors.As(err, &failed) {
		return reply(sender, failed.status, map[string]string{"error": failed.message}, nil)
	}
	return err
}

func (source) export(r *backend.CallResourceRequest, sender backend.CallResourceResponseSender) error {
	a, err := apiOf(r.PluginContext)
	if err != nil {
		return err
	}
	target, err := url.Parse(r.URL)
	if err != nil {
		return err
	}
	query := target.Query()
	start, err1 := strconv.ParseInt(query.Get("start"), 10, 64)
	end, err2 := strconv.ParseInt(query.Get("end"), 10, 64)
	step, err3 := strconv.ParseInt(query.Get("step"), 10, 64)
	if errors.Join(err1, err2, err3) != nil || step == 0 || !query.Has("sensor") {
		return apiError{400, "export takes sensor, and start, end and step in ms"}
	}
	found, err := a.sensor(query.Get("sensor"))
	if err != nil {
		return err
	}
	if err := sender.Send(&backend.CallResourceResponse{Status: 200, Body: []byte("time,value\n"),
		Headers: map[string][]string{"Content-Type": {"text/csv"}}}); err != nil {
		return err
	}
	for first := start; first <= end; first += chunk * step {
		rows, err := a.values(found.Name, times(first, min(first+chunk*step-1, end), step))
		if err != nil {
			return fmt.Errorf("the export of %s is not complete: %v", found.Name, err)
		}
		var lines strings.Builder
		for _, one := range rows {
			text := ""
			if one.value != nil {
				text = fmt.Sprintf("%.1f", *one.value)
			}
			fmt.Fprintf(&lines, "%d,%s\n", one.ms, text)
		}
		if err := sender.Send(&backend.CallResourceResponse{Body: []byte(lines.String())}); err != nil {
			return err
		}
	}
	return nil
}

func (source) latest(p backend.PluginContext, path string) (*data.Frame, error) {
	if !strings.HasPrefix(path, live) {
		return nil, apiError{404, "there is no channel " + path}
	}
	a, err := apiOf(p)
	if err != nil {
		return nil, err
	}
	found, err := a.sensor(strings.TrimPrefix(path, live))
	if err != nil {
		return nil, err
	}
	rows, err := a.values(found.Name, nil)
	return toFrame(found, rows, ""), err
}

func (s source) SubscribeStream(
	_ context.Context, r *backend.SubscribeStreamRequest) (*backend.SubscribeStreamResponse, error) {
	frame, err := s.latest(r.PluginContext, r.Path)
	if err != nil {
		return &backend.SubscribeStreamResponse{Status: backend.SubscribeStreamStatusNotFound}, nil
	}
	initial, err := backend.NewInitialFrame(frame, data.IncludeAll)
	return &backend.SubscribeStreamResponse{Status: backend.SubscribeStreamStatusOK, InitialData: initial}, err
}

func (s source) RunStream(ctx context.Context, r *backend.RunStreamRequest, sender *backend.StreamSender) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			frame, err := s.latest(r.PluginContext, r.Path)
			if err != nil {
				backend.Logger.Warn("no live value", "channel", r.Path, "reason", err.Error())
			} else if err := sender.SendFrame(frame, data.IncludeAll); err != nil {
				return err
			}
		}
	}
}

func (source) PublishStream(
	_ context.Context, r *backend.PublishStreamRequest) (*backend.PublishStreamResponse, error) {
	switch {
	case !strings.HasPrefix(r.Path, live):
		return &backend.PublishStreamResponse{Status: backend.PublishStreamStatusNotFound}, nil
	case r.PluginContext.User == nil || r.PluginContext.User.Role != "Admin":
		return &backend.PublishStreamResponse{Status: backend.PublishStreamStatusPermissionDenied}, nil
	}
	return &backend.PublishStreamResponse{Status: backend.PublishStreamStatusOK, Data: r.Data}, nil
}

func main() {
	factory := func(context.Context, backend.DataSourceInstanceSettings) (instancemgmt.Instance, error) {
		return source{}, nil
	}
	if err := datasource.Manage("me-sensors-datasource", factory, datasource.ManageOpts{}); err != nil {
		backend.Logger.Error(err.Error())
		os.Exit(1)
	}
}
